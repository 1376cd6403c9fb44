//! The real `xomni-worker`, as a process of a test's cluster.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::process::binary;

/// A running worker. It ends when this is dropped, and when the process of the test does.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    log: std::path::PathBuf,
    address: String,
}

impl Worker {
    /// Starts a worker in the role and with the arguments given, logs to `log`, and waits until it
    /// listens.
    ///
    /// # Panics
    /// If it ends before it listens; with its log then.
    pub fn start(log: &Path, arguments: &[&str]) -> Self {
        let file = File::create(log).expect("log file");
        let mut child = Command::new(binary("xomni-worker"))
            .args(arguments)
            .arg("--die-with-parent")
            .env("RAYON_NUM_THREADS", "2")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .expect("worker started");
        let output = child.stdout.take().expect("piped");
        let mut worker = Self {
            child,
            log: log.to_owned(),
            address: String::new(),
        };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("output");
        let address = line.trim().strip_prefix("backbone ready at ");
        match address {
            Some(address) => worker.address = address.to_owned(),
            None => panic!("the worker does not listen:\n{}", worker.log()),
        }
        worker
    }

    /// `host:port` of its services.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it a signal by name, such as `STOP`.
    ///
    /// # Panics
    /// If it has ended.
    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.expect("kill runs").success(), "signal {name} to {id}");
    }

    /// Waits until it has ended by itself; whether it succeeded.
    pub fn wait(&mut self) -> bool {
        self.child.wait().expect("ended").success()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}
