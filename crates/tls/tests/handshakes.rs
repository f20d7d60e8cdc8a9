//! Who is let in, who is not, and what both are told.

#[path = "../../../tests/harness/authority.rs"]
mod authority;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use authority::{Authority, Leaf, Pair};
use tempfile::TempDir;
use tls::{Acceptor, Connector, Pending, Settings, Socket, Stream, Verified, Version};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

/// A directory with the files of a server and of a client.
struct Files {
    dir: TempDir,
    authority: Authority,
}

impl Files {
    fn new() -> Files {
        let files = Files { dir: tempfile::tempdir().unwrap(), authority: Authority::new("ca") };
        files.write("ca.pem", &files.authority.pem());
        files.write_pair("server", &files.authority.sign(&Leaf::named("server", &["localhost", "127.0.0.1"])));
        files.write_pair("client", &files.authority.sign(&Leaf::named("alice", &[])));
        files.write("crl.pem", &files.authority.revoke(&[]));
        files
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn write_pair(&self, name: &str, pair: &Pair) {
        self.write(&format!("{name}.pem"), &pair.cert);
        self.write(&format!("{name}-key.pem"), &pair.key);
    }

    /// Of a server that wants certificates.
    fn server(&self) -> Settings {
        Settings {
            cert_file: self.path("server.pem"),
            key_file: self.path("server-key.pem"),
            trusted_ca_file: self.path("ca.pem"),
            crl_file: self.path("crl.pem"),
            client_cert_auth: true,
            ..Settings::default()
        }
    }

    /// Of a client that shows the certificate of this name.
    fn client(&self, name: &str) -> Settings {
        Settings {
            cert_file: self.path(&format!("{name}.pem")),
            key_file: self.path(&format!("{name}-key.pem")),
            trusted_ca_file: self.path("ca.pem"),
            ..Settings::default()
        }
    }
}

/// What came of a connection on either side: the client has sent a byte and got it back, or learned why not.
struct Met {
    server: Result<Verified, String>,
    client: io::Result<()>,
}

impl Met {
    /// What the server has written into its log.
    fn refusal(&self) -> &str {
        self.server.as_ref().expect_err("the client is let in")
    }

    /// What the client was told.
    fn answer(&self) -> String {
        self.client.as_ref().expect_err("the client is let in").to_string()
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn echo(mut stream: Stream) -> io::Result<()> {
    let byte = stream.read_u8().await?;
    stream.write_u8(byte).await?;
    stream.flush().await
}

async fn ask(stream: &mut Stream) -> io::Result<()> {
    stream.write_u8(7).await?;
    stream.flush().await?;
    assert_eq!(stream.read_u8().await?, 7);
    Ok(())
}

async fn meet_as(acceptor: &Acceptor, connector: &Connector, host: &str) -> Met {
    let (listener, address) = listen().await;
    let server = async {
        let (socket, from) = listener.accept().await.unwrap();
        let accepted = acceptor.accept(Socket::Tcp(socket), Some(from.ip())).await;
        let (stream, verified) = accepted.map_err(|refused| refused.to_string())?;
        // A client that does not like this server goes away.
        let _ = echo(stream).await;
        Ok(verified)
    };
    let client = async {
        let socket = TcpStream::connect(address).await.unwrap();
        ask(&mut connector.connect(Socket::Tcp(socket), host).await?).await
    };
    let (server, client) = timeout(PATIENCE, async { tokio::join!(server, client) }).await.expect("they meet");
    Met { server, client }
}

async fn meet(server: &Settings, client: &Settings) -> Met {
    let acceptor = Acceptor::new(server, &["h2"], false).expect("the server's files are good");
    let connector = Connector::new(client, &["h2"]).expect("the client's files are good");
    meet_as(&acceptor, &connector, "127.0.0.1").await
}

#[tokio::test]
async fn a_client_is_let_in_under_the_common_name_of_its_certificate() {
    let files = Files::new();
    let met = meet(&files.server(), &files.client("client")).await;
    met.client.unwrap();
    assert_eq!(met.server.unwrap().common_name.as_deref(), Some("alice"));
}

/// Go takes them, so clusters have them.
#[tokio::test]
async fn a_client_may_show_a_certificate_of_version_1() {
    let files = Files::new();
    files.write_pair("old", &files.authority.sign_version_1(&Leaf { serial: 5, ..Leaf::named("alice", &[]) }));
    let met = meet(&files.server(), &files.client("old")).await;
    met.client.unwrap();
    assert_eq!(met.server.unwrap().common_name.as_deref(), Some("alice"));
    let expired = Leaf { is_expired: true, ..Leaf::named("alice", &[]) };
    files.write_pair("expired", &files.authority.sign_version_1(&expired));
    let met = meet(&files.server(), &files.client("expired")).await;
    assert!(met.refusal().ends_with("x509: certificate has expired or is not yet valid"), "{}", met.refusal());
    files.write_pair("forged", &Authority::new("ca").sign_version_1(&Leaf::named("alice", &[])));
    let met = meet(&files.server(), &files.client("forged")).await;
    assert_eq!(met.refusal(), "tls: failed to verify certificate: x509: certificate signed by unknown authority");
    files.write("crl.pem", &files.authority.revoke(&[5]));
    let met = meet(&files.server(), &files.client("old")).await;
    assert_eq!(met.refusal(), "transport: certificate serial 05 revoked");
}

#[tokio::test]
async fn a_server_that_wants_no_certificate_lets_everybody_in() {
    let files = Files::new();
    let none = String::new();
    let server = Settings { trusted_ca_file: none.clone(), crl_file: none, client_cert_auth: false, ..files.server() };
    let met = meet(&server, &files.client("client")).await;
    met.client.unwrap();
    assert_eq!(met.server.unwrap(), Verified::default());
}

#[tokio::test]
async fn who_is_not_let_in_is_told_and_logged_in_the_words_of_go() {
    let files = Files::new();
    let alice = Leaf::named("alice", &[]);
    files.write_pair("stranger", &Authority::new("stranger").sign(&alice));
    files.write_pair("expired", &files.authority.sign(&Leaf { is_expired: true, ..alice.clone() }));
    files.write_pair("revoked", &files.authority.sign(&Leaf { serial: 0xbeef, ..alice }));
    files.write("crl.pem", &files.authority.revoke(&[1, 0xbeef]));
    let nobody = Settings { cert_file: String::new(), key_file: String::new(), ..files.client("client") };

    let met = meet(&files.server(), &nobody).await;
    assert_eq!(met.refusal(), "tls: client didn't provide a certificate");
    assert_eq!(met.answer(), "remote error: tls: certificate required");

    let met = meet(&files.server(), &files.client("stranger")).await;
    assert_eq!(met.refusal(), "tls: failed to verify certificate: x509: certificate signed by unknown authority");
    assert_eq!(met.answer(), "remote error: tls: unknown certificate authority");

    let met = meet(&files.server(), &files.client("expired")).await;
    let text = "tls: failed to verify certificate: x509: certificate has expired or is not yet valid: current time ";
    assert!(met.refusal().starts_with(text), "{}", met.refusal());
    assert_eq!(met.answer(), "remote error: tls: expired certificate");

    let met = meet(&files.server(), &files.client("revoked")).await;
    assert_eq!(met.refusal(), "transport: certificate serial beef revoked");
    met.client.unwrap_err();

    let only = |names: &[&str]| Settings {
        allowed_cns: names.iter().map(|name| (*name).to_owned()).collect(),
        ..files.server()
    };
    let met = meet(&only(&["bob", "carol"]), &files.client("client")).await;
    assert_eq!(met.refusal(), "client certificate authentication failed");
    met.client.unwrap_err();
    meet(&only(&["bob", "alice"]), &files.client("client")).await.client.unwrap();

    files.write_pair("host", &files.authority.sign(&Leaf::named("", &["a.example.com"])));
    let only = |name: &str| Settings { allowed_hostnames: vec![name.into()], ..files.server() };
    meet(&only("a.example.com"), &files.client("host")).await.client.unwrap();
    let met = meet(&only("b.example.com"), &files.client("host")).await;
    assert_eq!(met.refusal(), "client certificate authentication failed");
}

#[tokio::test]
async fn a_client_does_not_talk_to_a_server_that_is_not_who_was_dialled() {
    let files = Files::new();
    let acceptor = Acceptor::new(&files.server(), &["h2"], false).unwrap();
    let connector = |settings: &Settings| Connector::new(settings, &["h2"]).unwrap();
    let client = files.client("client");
    let met = meet_as(&acceptor, &connector(&client), "db.example.com").await;
    assert_eq!(
        met.answer(),
        "tls: failed to verify certificate: x509: certificate is valid for localhost, 127.0.0.1, not db.example.com"
    );
    assert_eq!(met.refusal(), "remote error: tls: bad certificate");

    let named = Settings { server_name: "localhost".into(), ..client.clone() };
    meet_as(&acceptor, &connector(&named), "db.example.com").await.client.unwrap();
    let blind = Settings { insecure_skip_verify: true, trusted_ca_file: String::new(), ..client.clone() };
    meet_as(&acceptor, &connector(&blind), "db.example.com").await.client.unwrap();

    files.write("other.pem", &Authority::new("stranger").pem());
    let wary = Settings { trusted_ca_file: files.path("other.pem"), ..client };
    let met = meet_as(&acceptor, &connector(&wary), "127.0.0.1").await;
    assert_eq!(met.answer(), "tls: failed to verify certificate: x509: certificate signed by unknown authority");
}

/// etcd's members check that a peer's certificate is for where it connects from; its clients may come from everywhere.
#[tokio::test]
async fn a_peers_certificate_must_be_for_the_address_that_it_connects_from() {
    let files = Files::new();
    let connector = |name: &str, names: &[&str]| {
        files.write_pair(name, &files.authority.sign(&Leaf::named("member", names)));
        Connector::new(&files.client(name), &[]).unwrap()
    };
    let strict = Acceptor::new(&files.server(), &[], true).unwrap();
    meet_as(&strict, &connector("here", &["127.0.0.1"]), "127.0.0.1").await.client.unwrap();
    meet_as(&strict, &connector("anywhere", &[]), "127.0.0.1").await.client.unwrap();
    let elsewhere = connector("elsewhere", &["10.0.0.1"]);
    let met = meet_as(&strict, &elsewhere, "127.0.0.1").await;
    assert_eq!(met.refusal(), "x509: certificate is valid for 10.0.0.1, not 127.0.0.1");
    let lenient = Acceptor::new(&files.server(), &[], false).unwrap();
    meet_as(&lenient, &elsewhere, "127.0.0.1").await.client.unwrap();
}

#[tokio::test]
async fn new_files_count_from_the_next_handshake_and_open_connections_go_on() {
    let files = Files::new();
    let acceptor = Arc::new(Acceptor::new(&files.server(), &["h2"], false).unwrap());
    let connector = Connector::new(&files.client("client"), &["h2"]).unwrap();
    let (listener, address) = listen().await;
    let server = tokio::spawn({
        let acceptor = acceptor.clone();
        async move {
            let (socket, _) = listener.accept().await.unwrap();
            let (mut stream, _) = acceptor.accept(Socket::Tcp(socket), None).await.unwrap();
            while let Ok(byte) = stream.read_u8().await {
                stream.write_u8(byte).await.unwrap();
                stream.flush().await.unwrap();
            }
        }
    });
    let socket = TcpStream::connect(address).await.unwrap();
    let mut open = connector.connect(Socket::Tcp(socket), "127.0.0.1").await.unwrap();
    ask(&mut open).await.unwrap();

    // A new authority for both sides, in the order of an operator: first whom to trust, then whom to show.
    let next = Authority::new("next ca");
    files.write("ca.pem", &(files.authority.pem() + &next.pem()));
    meet_as(&acceptor, &connector, "127.0.0.1").await.client.expect("the old certificates are still good");
    let new_server = next.sign(&Leaf::named("server", &["127.0.0.1"]));
    files.write("server.pem", &new_server.cert);
    // Between the two writes the key does not fit the certificate.
    meet_as(&acceptor, &connector, "127.0.0.1").await.client.expect("half a change changes nothing");
    files.write("server-key.pem", &new_server.key);
    files.write_pair("client", &next.sign(&Leaf { serial: 77, ..Leaf::named("bob", &[]) }));
    files.write("ca.pem", &next.pem());
    let met = meet_as(&acceptor, &connector, "127.0.0.1").await;
    met.client.unwrap();
    assert_eq!(met.server.unwrap().common_name.as_deref(), Some("bob"));
    files.write("crl.pem", &next.revoke(&[77]));
    assert_eq!(meet_as(&acceptor, &connector, "127.0.0.1").await.refusal(), "transport: certificate serial 4d revoked");
    files.write("crl.pem", "broken");
    let met = meet_as(&acceptor, &connector, "127.0.0.1").await;
    assert_eq!(met.refusal(), "transport: certificate serial 4d revoked", "a broken list takes nothing back");

    ask(&mut open).await.expect("a connection that was open goes on");
    drop(open);
    timeout(PATIENCE, server).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_speaks_http_to_tls_is_told_so() {
    let files = Files::new();
    let acceptor = Acceptor::new(&files.server(), &["h2"], false).unwrap();
    let (listener, address) = listen().await;
    let server = async {
        let (socket, _) = listener.accept().await.unwrap();
        acceptor.accept(Socket::Tcp(socket), None).await.map(|_| ()).unwrap_err().to_string()
    };
    let client = async {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let (refusal, answer) = timeout(PATIENCE, async { tokio::join!(server, client) }).await.unwrap();
    assert_eq!(refusal, "tls: first record does not look like a TLS handshake");
    assert!(answer.starts_with("HTTP/1.0 400 Bad Request\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"), "{answer}");
}

/// GHSA-6vch-q96h-7gc3: connections that never send a ClientHello piled up without a bound.
#[tokio::test]
async fn silent_connections_are_bounded_and_keep_nobody_out() {
    const FLOOD: usize = 300;
    const MOST: usize = 16;
    let files = Files::new();
    let acceptor = Arc::new(Acceptor::new(&files.server(), &["h2"], false).unwrap());
    let connector = Connector::new(&files.client("client"), &["h2"]).unwrap();
    let (listener, address) = listen().await;
    let tasks = tokio::task::LocalSet::new();
    let work = async {
        let served = tokio::task::spawn_local(async move {
            let (handshakes, mut under_way) = (Pending::new(MOST), tokio::task::JoinSet::new());
            for _ in 0..=FLOOD {
                let (socket, _) = listener.accept().await.unwrap();
                let (handshakes, acceptor) = (handshakes.clone(), acceptor.clone());
                under_way.spawn_local(async move {
                    let outcome = handshakes.run(acceptor.accept(Socket::Tcp(socket), None)).await;
                    if let Some(Ok((stream, _))) = outcome {
                        echo(stream).await.unwrap();
                    }
                });
            }
            // Those that have a place keep it until newer ones come or their time is over.
            while under_way.len() > MOST {
                under_way.join_next().await;
            }
            under_way
        });
        let mut silent = Vec::new();
        for _ in 0..FLOOD {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let socket = TcpStream::connect(address).await.unwrap();
        let mut stream = connector.connect(Socket::Tcp(socket), "127.0.0.1").await.expect("there is room");
        ask(&mut stream).await.unwrap();
        let _still_waiting = served.await.unwrap();
        // The first of them was closed long before its time.
        assert_eq!(silent[0].read(&mut [0]).await.unwrap_or(0), 0);
        drop(silent);
    };
    timeout(PATIENCE, tasks.run_until(work)).await.expect("nobody is kept waiting");
}

#[tokio::test]
async fn versions_and_cipher_suites_are_those_of_the_flags() {
    let files = Files::new();
    let client = files.client("client");
    let only_12 = Settings { max_version: Version::Tls12, ..client.clone() };
    let only_13 = Settings { min_version: Version::Tls13, ..files.server() };
    meet(&only_13, &client).await.client.unwrap();
    let met = meet(&only_13, &only_12).await;
    assert_eq!(met.refusal(), "tls: the other side supports none of the versions that are allowed here");
    let suite = |name: &str| Settings { cipher_suites: vec![name.into()], ..files.server() };
    meet(&suite("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"), &only_12).await.client.unwrap();
    let met = meet(&suite("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"), &only_12).await;
    assert_eq!(met.refusal(), "tls: no cipher suite supported by both client and server");
    let refused = Acceptor::new(&suite("TLS_RSA_WITH_AES_128_CBC_SHA"), &[], false).unwrap_err().to_string();
    assert!(refused.starts_with("none of the cipher suites is supported (TLS_RSA_WITH_AES_128_CBC_SHA)"), "{refused}");
}

#[tokio::test]
async fn what_is_missing_or_does_not_fit_is_told_at_the_start() {
    let files = Files::new();
    let error = |settings: &Settings| Acceptor::new(settings, &[], false).map(|_| ()).unwrap_err().to_string();
    let gone = Settings { cert_file: "/nonexistent/cert.pem".into(), ..files.server() };
    assert_eq!(error(&gone), "open /nonexistent/cert.pem: no such file or directory");
    let half = Settings { key_file: String::new(), ..files.server() };
    assert!(error(&half).starts_with("KeyFile and CertFile must both be present[key: , cert: "));
    let mixed = Settings { key_file: files.path("client-key.pem"), ..files.server() };
    assert!(error(&mixed).ends_with("tls: private key does not match public key"));
    let swapped = Settings { cert_file: files.path("server-key.pem"), ..files.server() };
    assert!(error(&swapped).ends_with("tls: failed to find any PEM data in certificate input"));
    let half = Settings { client_cert_file: "x".into(), ..files.client("client") };
    assert_eq!(
        Connector::new(&half, &[]).unwrap_err().to_string(),
        "ClientKeyFile and ClientCertFile must both be present or both absent: key: , cert: x]"
    );
}

/// Whoever is given the certificate of `--auto-tls` as `--cacert` trusts exactly that member.
#[tokio::test]
async fn a_members_own_certificate_is_made_once_and_can_be_its_own_authority() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let fixtures = dir.path().join("fixtures/peer");
    let hosts = ["127.0.0.1".to_owned(), "localhost".to_owned()];
    let (cert_file, key_file) = tls::self_signed(&fixtures, &hosts, 1, tls::Purpose::Peer).unwrap();
    let before = fs::read(&cert_file).unwrap();
    tls::self_signed(&fixtures, &hosts, 1, tls::Purpose::Peer).unwrap();
    assert_eq!(fs::read(&cert_file).unwrap(), before, "what is there is used again");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&fixtures), mode(key_file.as_ref())), (0o700, 0o600));
    let server = Settings { cert_file: cert_file.clone(), key_file, ..Settings::default() };
    let client = Settings { trusted_ca_file: cert_file, ..Settings::default() };
    meet(&server, &client).await.client.unwrap();
    let error = tls::self_signed(&dir.path().join("none"), &hosts, 0, tls::Purpose::Server).unwrap_err().to_string();
    assert!(error.ends_with("selfSignedCertValidity is invalid,it should be greater than 0"), "{error}");
}

/// What an etcd has made for itself, on P-521, is good for a server of ours and for its clients. That it is out of date one day
/// does not matter: nobody verifies it.
#[tokio::test]
async fn the_certificate_that_an_etcd_has_made_for_itself_is_understood() {
    let file = |name: &str| format!("{}/tests/data/etcd-3.5.1-auto-tls-{name}.pem", env!("CARGO_MANIFEST_DIR"));
    let server = Settings { cert_file: file("cert"), key_file: file("key"), ..Settings::default() };
    for max_version in [Version::Tls12, Version::Tls13] {
        let client = Settings { insecure_skip_verify: true, max_version, ..Settings::default() };
        let met = meet(&server, &client).await;
        met.client.unwrap();
        met.server.unwrap();
    }
}

/// The way in which `--discovery` asks.
#[tokio::test]
async fn a_thread_that_may_wait_speaks_tls_as_well() {
    use std::io::{Read as _, Write as _};
    let files = Files::new();
    let acceptor = Acceptor::new(&files.server(), &[], false).unwrap();
    let connector = Connector::new(&files.client("client"), &[]).unwrap();
    let (listener, address) = listen().await;
    let client = tokio::task::spawn_blocking(move || -> io::Result<u8> {
        let socket = std::net::TcpStream::connect(address)?;
        let mut stream = connector.connect_blocking(socket, "localhost")?;
        stream.write_all(&[7])?;
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        Ok(byte[0])
    });
    let (socket, _) = listener.accept().await.unwrap();
    let (stream, _) = acceptor.accept(Socket::Tcp(socket), None).await.unwrap();
    echo(stream).await.unwrap();
    assert_eq!(timeout(PATIENCE, client).await.unwrap().unwrap().unwrap(), 7);
}
