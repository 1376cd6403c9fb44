//! What a process uses of the machine, as Linux counts it.

use std::{
    fs, io,
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::param::{clock_ticks_per_second, page_size};

use crate::error::CliError;

/// A process at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    at: Instant,
    /// Time on a core, in the process and in the kernel for it, since it began.
    pub cpu: Duration,
    /// Memory that is resident, in bytes.
    pub resident: u64,
}

impl Usage {
    /// Of the process with this id, now.
    ///
    /// # Errors
    /// [`CliError::File`] where `/proc` does not tell.
    pub fn of(process: u32) -> Result<Self, CliError> {
        let path = PathBuf::from(format!("/proc/{process}/stat"));
        let text = fs::read_to_string(&path).map_err(CliError::file(&path))?;
        let read = fields(&text).ok_or_else(|| io::Error::other("is not as proc(5) says"));
        let (ticks, pages) = read.map_err(CliError::file(&path))?;
        let per_second = clock_ticks_per_second().max(1);
        Ok(Self {
            at: Instant::now(),
            cpu: Duration::from_secs_f64(ticks as f64 / per_second as f64),
            resident: pages * page_size() as u64,
        })
    }

    /// Cores in use, on average, from `earlier` to this.
    pub fn cores_since(&self, earlier: &Self) -> f64 {
        let wall = self.at.duration_since(earlier.at).as_secs_f64();
        self.cpu.saturating_sub(earlier.cpu).as_secs_f64() / wall.max(1e-9)
    }
}

/// Ticks of `utime` and `stime`, and pages of `rss`: fields 14, 15 and 24 of `stat`. The second
/// field is the program's name in parentheses and may hold anything.
fn fields(stat: &str) -> Option<(u64, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let rest: Vec<&str> = rest.split_ascii_whitespace().collect();
    let field = |number: usize| rest.get(number - 3)?.parse::<u64>().ok();
    Some((field(14)? + field(15)?, field(24)?))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn reads_what_proc_says() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 300 12 0 0 20 0 1 0 99 4096 55 18446744";
        assert_eq!(fields(stat), Some((312, 55)));
        assert_eq!(fields("7 (a) S 1"), None);
    }

    #[test]
    fn a_busy_process_uses_time() {
        let before = Usage::of(std::process::id()).expect("this process");
        let mut now = before;
        let mut work = 0u64;
        while now.cpu == before.cpu {
            for i in 0..1_000_000 {
                work = std::hint::black_box(work.wrapping_mul(31).wrapping_add(i));
            }
            now = Usage::of(std::process::id()).expect("this process");
        }
        assert!(now.cores_since(&before) > 0.0);
        assert!(now.resident > 0);
    }
}
