//! A real etcd for a test: on free ports of the loopback, in a folder of its own.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::certificates::Certificate;

/// Within this, etcd serves or something is wrong.
const START: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);
/// Ports that no system gives to outgoing connections, so that nobody takes a stopped etcd's.
const PORTS: std::ops::Range<u16> = 20000..32000;

/// A running etcd. It ends when this is dropped, and when the process of the test does.
#[derive(Debug)]
pub struct Etcd {
    folder: TempDir,
    client: SocketAddr,
    peer: SocketAddr,
    /// Where its health is asked for: its clients' address, or one without TLS.
    health: SocketAddr,
    tls: Option<Tls>,
    child: Option<Child>,
}

/// What it shows, and the authority of its clients.
#[derive(Debug)]
struct Tls {
    shown: Certificate,
    clients: PathBuf,
}

impl Etcd {
    /// Starts one with an empty store and waits until it serves.
    ///
    /// # Panics
    /// If etcd is not installed (`deploy/dev/etcd` does that) or does not serve.
    #[allow(clippy::new_without_default, reason = "it starts a process")]
    pub fn new() -> Self {
        Self::serving(None)
    }

    /// As [`Self::new`], but it serves over TLS alone, showing `shown`, and only clients with a
    /// certificate of the authority in the file `clients`.
    ///
    /// # Panics
    /// As there.
    pub fn with_tls(shown: &Certificate, clients: &Path) -> Self {
        Self::serving(Some(Tls {
            shown: shown.clone(),
            clients: clients.to_owned(),
        }))
    }

    fn serving(tls: Option<Tls>) -> Self {
        let folder = tempfile::tempdir().expect("folder for etcd");
        let client = free_port();
        let mut etcd = Self {
            folder,
            client,
            peer: free_port(),
            health: tls.as_ref().map_or(client, |_| free_port()),
            tls,
            child: None,
        };
        etcd.start();
        etcd
    }

    /// Its clients' endpoints: `host:port`, or `https://host:port`.
    pub fn endpoints(&self) -> Vec<String> {
        let scheme = self.tls.as_ref().map_or("", |_| "https://");
        vec![format!("{scheme}{}", self.client)]
    }

    /// Starts it again on the same ports and data, and waits until it serves.
    ///
    /// # Panics
    /// If it does not serve.
    pub fn start(&mut self) {
        if self.child.is_some() {
            return;
        }
        let deadline = Instant::now() + START;
        let mut child = self.spawn();
        while !serves(self.health) {
            let ended = child.try_wait().expect("state of etcd");
            if ended.is_some() || Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!("etcd does not serve ({ended:?}):\n{}", self.log());
            }
            thread::sleep(POLL);
        }
        self.child = Some(child);
    }

    /// Kills it. Its data stays.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killed");
            child.wait().expect("ended");
        }
    }

    /// Loses the data of a stopped one: it starts again with an empty store.
    ///
    /// # Panics
    /// If it runs.
    pub fn erase(&mut self) {
        assert!(self.child.is_none(), "etcd runs");
        std::fs::remove_dir_all(self.data()).expect("erased");
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn spawn(&self) -> Child {
        let url = |address: SocketAddr| format!("http://{address}");
        let (mut client, peer) = (url(self.client), url(self.peer));
        let mut command = mortal("etcd");
        if let Some(Tls { shown, clients }) = &self.tls {
            client = format!("https://{}", self.client);
            command.arg("--cert-file").arg(&shown.certificate);
            command.arg("--key-file").arg(&shown.key);
            command.arg("--client-cert-auth");
            command.arg("--trusted-ca-file").arg(clients);
            command.args(["--listen-metrics-urls", &url(self.health)]);
        }
        command.args([
            "--name",
            "test",
            "--initial-cluster",
            &format!("test={peer}"),
        ]);
        command.arg("--data-dir").arg(self.data());
        command.args([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ]);
        command.args([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ]);
        let log = log_file(&self.folder.path().join("log")).expect("log of etcd");
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log of etcd"))
            .stderr(log);
        spawn_lasting(command).expect("etcd is installed: run deploy/dev/etcd")
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("etcd on {}:\n{}", self.client, self.log());
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A command that is killed when the thread that starts it ends.
fn mortal(program: &str) -> Command {
    if cfg!(target_os = "linux") {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", program]);
        command
    } else {
        Command::new(program)
    }
}

/// Starts a process from a thread that lives as long as this process: death signals come when the
/// starting thread ends, and those of tests end early.
fn spawn_lasting(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::SyncSender<io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, queue) = mpsc::channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in queue {
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, spawned) = mpsc::sync_channel(1);
    spawner.send((command, answer)).map_err(io::Error::other)?;
    spawned.recv().map_err(io::Error::other)?
}

fn log_file(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// A port that is free now and that no other test of this machine is likely to try.
fn free_port() -> SocketAddr {
    static TRIED: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16;
    loop {
        let offset = first
            .wrapping_mul(31)
            .wrapping_add(TRIED.fetch_add(1, Ordering::Relaxed));
        let port = PORTS.start + offset % (PORTS.end - PORTS.start);
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            return listener.local_addr().expect("bound address");
        }
    }
}

/// Whether the etcd of this address has a leader and answers.
fn serves(address: SocketAddr) -> bool {
    let health = || -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, START)?;
        stream.set_read_timeout(Some(START))?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    health().is_ok_and(|answer| answer.contains(r#""health":"true""#))
}
