//! The real binaries, as a user runs them.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Within this, what a test waits for happens or something is wrong.
pub const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// The path of a binary of this workspace, built in the profile of the running test.
///
/// # Panics
/// If it is not built: `cargo build --release --workspace` comes before the tests.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("path of this test");
    let profile = test.ancestors().nth(2).expect("target folder of this test");
    let path = profile.join(name);
    assert!(
        path.is_file(),
        "{} is not built: run `cargo build --release --workspace` first",
        path.display()
    );
    path
}

/// Waits until `condition` gives something.
///
/// # Panics
/// With `what`, if it does not within [`PATIENCE`].
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_within(PATIENCE, what, condition)
}

/// Waits until `condition` gives something, for at most `limit`.
///
/// # Panics
/// With `what`, if it does not.
pub fn wait_within<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(
            Instant::now() < deadline,
            "waited {limit:?} in vain for {what}"
        );
        thread::sleep(POLL);
    }
}

/// A running binary of this workspace. It is killed when this is dropped; what it wrote is shown
/// if the test fails.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `binary` with `arguments` and variables, its output going to a file in `folder`.
    pub fn start(
        name: &str,
        program: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
        folder: &Path,
    ) -> Self {
        let log = folder.join(format!("{}-{}.log", name.replace(' ', "-"), unique()));
        let file = File::create(&log).expect("log file");
        let child = Command::new(binary(program))
            .args(arguments)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("log file"))
            .stderr(file)
            .spawn()
            .expect("started");
        Self {
            name: name.to_owned(),
            child,
            log,
        }
    }

    /// Its number in the system.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote so far.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits for a line that holds `part` and returns the rest of that line.
    pub fn wait_for_line(&mut self, part: &str) -> String {
        let what = format!("{part:?} from {}", self.name);
        wait_for(&what, || {
            let output = self.output();
            let found = output.lines().find_map(|line| line.split_once(part));
            if let Some((_, rest)) = found {
                return Some(rest.trim().to_owned());
            }
            let ended = self.child.try_wait().expect("state of a process");
            assert!(
                ended.is_none(),
                "{} ended ({ended:?}):\n{output}",
                self.name
            );
            None
        })
    }

    /// Sends a signal: `KILL`, `STOP`, `CONT`, `TERM` or `INT`.
    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", signal, &pid]).status();
        assert!(
            sent.expect("kill runs").success(),
            "{signal} to {}",
            self.name
        );
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        wait_for(&what, || self.child.try_wait().expect("state of a process"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {}\n{}", self.name, self.output());
        }
    }
}

fn unique() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
