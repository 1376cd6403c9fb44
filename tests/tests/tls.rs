//! A cluster whose processes trust only those with a certificate of its authority.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, pem::PemObject},
};
use xomni_tests::{
    certificates::{Authority, Certificate},
    etcd::Etcd,
    golden::Fixture,
    process::{Process, binary},
};

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Options of a process that shows this certificate and trusts only those of `authority`.
fn options(shown: &Certificate, authority: &Authority) -> Vec<String> {
    let mut options = calling(Some(shown), authority);
    options.extend(["--tls-client-ca".into(), text(&authority.file())]);
    options
}

/// Options of a client.
fn calling(shown: Option<&Certificate>, trusted: &Authority) -> Vec<String> {
    let mut options = vec!["--tls-ca".into(), text(&trusted.file())];
    if let Some(Certificate { certificate, key }) = shown {
        let shown = [
            "--tls-cert".into(),
            text(certificate),
            "--tls-key".into(),
            text(key),
        ];
        options.extend(shown);
    }
    options
}

fn start(name: &str, program: &str, own: &[&str], more: &[String], folder: &Path) -> Process {
    let more = more.iter().map(String::as_str);
    let arguments: Vec<&str> = own.iter().copied().chain(more).collect();
    Process::start(name, program, &arguments, &[], folder)
}

/// etcd, a coordinator, the two ranks of a group and a decoder, all with mutual TLS.
struct Cluster {
    authority: Authority,
    folder: TempDir,
    address: String,
    _processes: Vec<Process>,
    _etcd: Etcd,
}

impl Cluster {
    fn start() -> Self {
        let authority = Authority::new();
        let folder = tempfile::tempdir().expect("folder for logs");
        let etcd = Etcd::with_tls(&authority.certificate("etcd"), &authority.file());
        let fixture = Fixture::open();
        let (model, flux) = (text(&fixture.x_omni()), text(&fixture.flux()));
        let common = |name: &str| {
            let mut common = options(&authority.certificate(name), &authority);
            let endpoint = etcd.endpoints().remove(0);
            common.extend(["--model".into(), model.clone(), "--etcd".into(), endpoint]);
            common
        };
        let mut processes: Vec<Process> = ["0", "1"]
            .map(|rank| {
                let own = [
                    "backbone",
                    "--tp",
                    "2",
                    "--ranks",
                    "1",
                    "--first-rank",
                    rank,
                ];
                let name = format!("rank-{rank}");
                start(&name, "xomni-worker", &own, &common(&name), folder.path())
            })
            .into();
        let own = ["decoder", "--flux", &flux];
        let decoder = start(
            "decoder",
            "xomni-worker",
            &own,
            &common("decoder"),
            folder.path(),
        );
        processes.push(decoder);
        let shown = common("coordinator");
        let mut coordinator = start(
            "coordinator",
            "xomni-coordinator",
            &[],
            &shown,
            folder.path(),
        );
        let address = coordinator.wait_for_line("coordinator ready at ");
        processes.push(coordinator);
        Self {
            authority,
            folder,
            address,
            _processes: processes,
            _etcd: etcd,
        }
    }

    fn generate(&self, more: &[String]) -> Output {
        Command::new(binary("xomni"))
            .args([
                "generate",
                "a red fox",
                "--size",
                "64x48",
                "--seed",
                "7",
                "-o",
                "out.png",
            ])
            .args(more)
            .current_dir(self.folder.path())
            .output()
            .expect("xomni runs")
    }

    /// The picture that a client with these options gets.
    fn picture(&self, more: &[String]) -> Vec<u8> {
        let output = self.generate(more);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{stderr}");
        fs::read(self.folder.path().join("out.png")).expect("a picture")
    }

    fn server(&self, mut options: Vec<String>) -> Vec<String> {
        options.extend(["--server".into(), self.address.clone()]);
        options
    }
}

#[test]
fn a_cluster_draws_over_mutual_tls_and_only_for_who_is_trusted() {
    let cluster = Cluster::start();
    let shown = cluster.authority.certificate("client");
    let trusted = cluster.server(calling(Some(&shown), &cluster.authority));
    xomni_tests::process::wait_for("the cluster draws", || {
        cluster.generate(&trusted).status.success().then_some(())
    });
    let fixture = Fixture::open();
    let (model, flux) = (text(&fixture.x_omni()), text(&fixture.flux()));
    let here = cluster.picture(&["--model".into(), model, "--flux".into(), flux]);
    assert!(cluster.picture(&trusted) == here, "the same picture");

    let other = Authority::new();
    let stranger = other.certificate("client");
    for (who, options) in [
        ("without a certificate", calling(None, &cluster.authority)),
        (
            "with another's certificate",
            calling(Some(&stranger), &cluster.authority),
        ),
        ("that trusts another", calling(Some(&shown), &other)),
        ("without TLS", vec![]),
    ] {
        let output = cluster.generate(&cluster.server(options));
        assert_eq!(output.status.code(), Some(1), "a client {who}");
    }
    assert!(cluster.picture(&trusted) == here, "nothing is disturbed");
}

#[test]
fn what_others_reach_is_not_served_in_plain_text() {
    let fixture = Fixture::open();
    let (model, flux) = (text(&fixture.x_omni()), text(&fixture.flux()));
    for (program, own) in [
        ("xomni-coordinator", vec!["--etcd", "127.0.0.1:1"]),
        ("xomni-worker", vec!["decoder", "--flux", &flux]),
        ("xomni-worker", vec!["backbone"]),
    ] {
        for (option, address) in [("--listen", "0.0.0.0:0"), ("--metrics", "[::]:0")] {
            let output = Command::new(binary(program))
                .args(&own)
                .args(["--model", &model, option, address])
                .output()
                .expect("runs");
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success(), "{program} {option}");
            for part in [option, "--tls-cert", "--insecure"] {
                assert!(stderr.contains(part), "{part} in {stderr}");
            }
        }
    }
}

/// What is answered to `GET /healthz`.
fn health(mut stream: impl Read + Write) -> String {
    let asked = stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut answer = vec![];
    // A connection that is closed or reset has no more to say.
    let _ = asked.and_then(|()| stream.read_to_end(&mut answer));
    String::from_utf8_lossy(&answer).into_owned()
}

#[test]
fn a_browser_needs_no_certificate_where_none_is_asked_for() {
    let authority = Authority::new();
    let folder = tempfile::tempdir().expect("folder for logs");
    let Certificate { certificate, key } = authority.certificate("coordinator");
    let (certificate, key) = (text(&certificate), text(&key));
    let model = text(&Fixture::open().x_omni());
    let own = [
        "--model",
        &model,
        "--etcd",
        "127.0.0.1:1",
        "--metrics",
        "127.0.0.1:0",
        "--tls-cert",
        &certificate,
        "--tls-key",
        &key,
    ];
    let mut coordinator = start("coordinator", "xomni-coordinator", &own, &[], folder.path());
    let ready = coordinator.wait_for_line("coordinator ready at ");
    let (address, metrics) = ready.split_once(", metrics at ").expect("both");
    assert!(metrics.starts_with("https://"), "{metrics}");

    let mut roots = RootCertStore::empty();
    let trusted = CertificateDer::from_pem_file(authority.file()).expect("a certificate");
    roots.add(trusted).expect("an authority");
    let mut config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let name = "127.0.0.1".try_into().expect("a name");
    let session = ClientConnection::new(config.into(), name).expect("a session");
    let connection = TcpStream::connect(address).expect("connects");
    let answer = health(StreamOwned::new(session, connection));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let plain = health(TcpStream::connect(address).expect("connects"));
    assert!(!plain.contains("200"), "{plain}");
}
