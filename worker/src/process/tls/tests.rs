use std::net::{Ipv4Addr, Ipv6Addr};

use super::*;

fn reason<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.expect_err("refused").to_string()
}

#[tokio::test]
async fn without_a_certificate_only_this_machine_is_served() {
    let plain = Tls::default();
    for local in [
        SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, 0)),
    ] {
        // A machine may lack IPv6, which is another error.
        if let Err(error) = plain.listen("--listen", local).await {
            assert!(matches!(error, Error::Io { .. }), "{error}");
        }
    }
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
    for option in ["--listen", "--metrics"] {
        let error = reason(plain.listen(option, everywhere).await);
        for part in [option, "0.0.0.0:0", "--tls-cert", "--insecure"] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }
    let told = Tls {
        insecure: true,
        ..Tls::default()
    };
    assert!(told.listen("--listen", everywhere).await.is_ok());
}

#[test]
fn without_an_authority_only_an_etcd_of_this_machine_is_called() {
    let local = ["127.0.0.1:2379", "localhost:1", "http://[::1]:2379"].map(str::to_owned);
    let tls = Tls::default();
    assert!(tls.cluster(&local, "c").is_ok());
    for far in ["10.0.0.1:2379", "http://etcd:2379", "localhost.example:1"] {
        let error = reason(tls.cluster(&[local[0].clone(), far.into()], "c"));
        assert!(
            error.contains(far) && error.contains("--etcd-ca"),
            "{error}"
        );
    }
    let error = reason(tls.cluster(&["https://127.0.0.1:2379".into()], "c"));
    assert!(error.contains("--etcd-ca"), "{error}");
    let told = Tls {
        insecure: true,
        ..Tls::default()
    };
    assert!(told.cluster(&["10.0.0.1:2379".into()], "c").is_ok());
}

#[tokio::test]
async fn files_that_are_no_certificates_are_named() {
    let folder = tempfile::tempdir().expect("folder");
    let (empty, missing) = (folder.path().join("empty.pem"), folder.path().join("none"));
    std::fs::write(&empty, "").expect("written");
    for file in [&empty, &missing] {
        let client = ClientTls {
            tls_cert: Some(file.clone()),
            tls_key: Some(file.clone()),
            tls_ca: Some(file.clone()),
            tls_server_name: None,
        };
        let name = file.display().to_string();
        assert!(reason(client.dialer()).contains(&name));
        let tls = Tls {
            client,
            ..Tls::default()
        };
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        assert!(reason(tls.listen("--listen", local).await).contains(&name));
        assert!(reason(tls.cluster(&["127.0.0.1:1".into()], "c")).contains(&name));
    }
}
