//! One supervised process: started, restarted when it dies, ended with the command.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::PathBuf,
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, BufReader},
    process::{Child, Command},
    sync::watch,
};

/// Waits between restarts double from the first to the last of these …
const BACKOFF: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];
/// … and begin anew after a life this long.
const LONG_LIFE: Duration = Duration::from_secs(10);
/// How long a process may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(15);

/// What to run.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Stands before every line that the process writes.
    pub name: String,
    /// The binary.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Where it shows its metrics, without the scheme and the path.
    pub metrics: SocketAddr,
    /// `http` or `https`.
    pub scheme: &'static str,
}

impl Spec {
    /// Where its metrics are, in a line.
    pub fn metrics_line(&self) -> String {
        format!("{}: {}://{}/metrics", self.name, self.scheme, self.metrics)
    }
}

/// Runs `spec` until `ended` turns true, restarting it whenever it dies.
pub async fn supervise(spec: Spec, mut ended: watch::Receiver<bool>) {
    let mut wait = BACKOFF[0];
    while !*ended.borrow() {
        let born = Instant::now();
        match start(&spec) {
            Ok(mut child) => {
                tokio::select! {
                    status = child.wait() => match status {
                        Ok(status) => eprintln!("[{}] ended: {status}", spec.name),
                        Err(error) => eprintln!("[{}] lost: {error}", spec.name),
                    },
                    () = over(&mut ended) => return end(&spec, child).await,
                }
            }
            Err(error) => eprintln!("[{}] {}: {error}", spec.name, spec.program.display()),
        }
        if born.elapsed() > LONG_LIFE {
            wait = BACKOFF[0];
        }
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = over(&mut ended) => return,
        }
        wait = (wait * 2).min(BACKOFF[1]);
    }
}

/// Ready once everything is to end.
async fn over(ended: &mut watch::Receiver<bool>) {
    // An error means that the supervisor is gone, which ends everything too.
    drop(ended.wait_for(|ended| *ended).await);
}

fn start(spec: &Spec) -> std::io::Result<Child> {
    let mut child = Command::new(&spec.program)
        .args(&spec.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    // Each reader ends with the pipe, that is with the process.
    if let Some(stdout) = child.stdout.take() {
        tokio::spawn(relay(spec.name.clone(), stdout));
    }
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(relay(spec.name.clone(), stderr));
    }
    Ok(child)
}

async fn relay(name: String, pipe: impl AsyncRead + Unpin) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        eprintln!("[{name}] {line}");
    }
}

/// SIGTERM, and SIGKILL for a process that does not end.
async fn end(spec: &Spec, mut child: Child) {
    if let Some(pid) = child.id().and_then(|id| Pid::from_raw(id as i32)) {
        let _ = kill_process(pid, Signal::TERM);
    }
    if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
        eprintln!("[{}] did not end in {} s", spec.name, GRACE.as_secs());
        let _ = child.kill().await;
    }
}
