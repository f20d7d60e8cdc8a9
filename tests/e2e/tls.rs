//! TLS everywhere: who is served, who is not, and that neither new files nor silent strangers disturb anybody.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keelson_tests::harness::authority::{Authority, Leaf};
use keelson_tests::harness::{
    Binary, Cluster, Options, Papers, Server, Setup, etcdctl, free_addresses, our_etcdctl, ours, reference,
    reference_with_v2,
};

/// How long anything may take that has to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// The flags of members that speak TLS with everybody.
fn flags(papers: &Papers) -> Vec<OsString> {
    [papers.client_port_flags(), papers.peer_port_flags()].concat()
}

fn cluster(papers: &Papers, binaries: Vec<Binary>) -> Cluster {
    let tls = Some(papers.connector("client", &[]));
    Cluster::start(Setup { flags: flags(papers), tls, ..Setup::new(binaries) }).expect("the cluster starts")
}

/// Runs etcdctl as the client of this name. Those who are not let in get a moment, everybody else time.
fn run(tool: &Path, papers: &Papers, client: &str, server: &Server, arguments: &[&str]) -> Output {
    let mut command = Command::new(tool);
    command.env("ETCDCTL_API", "3").args(["--endpoints", &server.client_url()]).args(papers.tool_flags(client));
    command.args(arguments).output().expect("etcdctl runs")
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until a line of the server's log holds both.
fn wait_for_line(server: &Server, message: &str, error: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !server.log().lines().any(|line| line.contains(message) && line.contains(error)) {
        assert!(Instant::now() < deadline, "no line with {message:?} and {error:?} in\n{}", server.log_tail());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_cluster_in_tls_serves_who_has_a_good_certificate_and_nobody_else() {
    let Some(tool) = etcdctl() else {
        eprintln!("skipped: there is no etcdctl; .ci/peers fetches it");
        return;
    };
    let papers = Papers::new();
    let alice = Leaf::named("alice", &[]);
    papers.write_pair("stranger", &Authority::new("stranger").sign(&alice));
    papers.write_pair("expired", &papers.authority.sign(&Leaf { is_expired: true, ..alice.clone() }));
    papers.write_pair("revoked", &papers.authority.sign(&Leaf { serial: 0xdead, ..alice }));
    papers.write("crl", &papers.authority.revoke(&[0xdead]));
    let mut cluster = cluster(&papers, vec![ours(); 3]);
    assert_eq!(stdout(&run(&tool, &papers, "client", cluster.member(0), &["put", "k", "v"])), "OK\n");
    for member in 0..3 {
        assert_eq!(stdout(&run(&tool, &papers, "client", cluster.member(member), &["get", "k"])), "k\nv\n");
    }
    let members = stdout(&run(&tool, &papers, "client", cluster.member(1), &["member", "list"]));
    assert_eq!(members.matches("https://127.0.0.1").count(), 6, "{members}");
    let server = cluster.member(0);
    let refused = [
        ("stranger", "x509: certificate signed by unknown authority"),
        ("expired", "x509: certificate has expired or is not yet valid"),
        ("revoked", "transport: certificate serial dead revoked"),
    ];
    for (client, error) in refused {
        let output = run(&tool, &papers, client, server, &["get", "k", "--dial-timeout=1s", "--command-timeout=1s"]);
        assert!(!output.status.success(), "{client} is let in: {output:?}");
        wait_for_line(server, "rejected connection on client endpoint", error);
    }
    // HTTP/1.1 on the same port, and plain HTTP where TLS is wanted.
    assert!(server.get("/version").expect("it answers").contains("etcdserver"));
    let mut plain = TcpStream::connect(server.client_addr()).expect("it listens");
    plain.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    plain.read_to_string(&mut answer).expect("it answers");
    assert!(answer.contains("Client sent an HTTP request to an HTTPS server."), "{answer}");
}

/// What our own tool of either API writes when it is given these flags and words, and whether it is content.
fn ours_says(version: &str, flags: &[OsString], words: &[&str]) -> (bool, String) {
    let mut command = Command::new(our_etcdctl());
    let output = command.env("ETCDCTL_API", version).args(flags).args(words).output().expect("etcdctl runs");
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).into_owned())
}

/// The flags of both tools for endpoint, authority, certificate and its key.
fn tool_flags(version: &str, papers: &Papers, url: &str, authority: &str, client: Option<&str>) -> Vec<OsString> {
    let [authority_flag, cert, key] =
        if version == "2" { ["--ca-file", "--cert-file", "--key-file"] } else { ["--cacert", "--cert", "--key"] };
    let mut flags = vec!["--endpoints".into(), url.into(), authority_flag.into(), papers.path(authority).into()];
    if let Some(client) = client {
        flags.extend([cert.into(), papers.path(client).into()]);
        flags.extend([key.into(), papers.path(&format!("{client}-key")).into()]);
    }
    flags
}

#[test]
fn our_own_tools_speak_tls_and_say_why_they_cannot() {
    let papers = Papers::new();
    papers.write("other-ca", &Authority::new("other").pem());
    let mut flags = flags(&papers);
    flags.push("--enable-v2=true".into());
    let tls = Some(papers.connector("client", &[]));
    let cluster = Cluster::start(Setup { flags, tls, ..Setup::new(vec![ours()]) }).expect("the cluster starts");
    let url = cluster.servers()[0].client_url();
    let (put, get): (&[&str], &[&str]) = (&["put", "k", "v"], &["get", "k"]);
    for (version, write, written, read) in [("3", put, "OK\n", "k\nv\n"), ("2", &["set", "k", "v"], "v\n", "v\n")] {
        let with = |authority: &str, client| tool_flags(version, &papers, &url, authority, client);
        let good = with("ca", Some("client"));
        assert_eq!(ours_says(version, &good, write), (true, written.to_owned()));
        assert_eq!(ours_says(version, &good, get), (true, read.to_owned()));
        let members = ours_says(version, &good, &["member", "list"]).1;
        assert!(members.contains(&url), "{members}");
        let health: &[&str] = if version == "2" { &["cluster-health"] } else { &["endpoint", "health"] };
        let (is_well, health) = ours_says(version, &good, health);
        assert!(is_well && health.contains("is healthy"), "{health}");
        for (flags, cause) in [
            (with("other-ca", Some("client")), "x509: certificate signed by unknown authority"),
            (with("ca", None), "remote error: tls: certificate required"),
            (with("missing", None), "missing.pem: no such file or directory"),
            (with("ca", Some("server-key")), "server-key-key.pem: no such file or directory"),
            (good[..6].to_vec(), "KeyFile and CertFile must both be present"),
        ] {
            let (is_content, text) = ours_says(version, &flags, get);
            assert!(!is_content && text.contains(cause), "v{version}, {cause}: {text}");
        }
    }
    // Without a scheme, files for TLS say that it is spoken; a tool that is told so looks at no certificate.
    let bare = url.trim_start_matches("https://");
    let flags = tool_flags("3", &papers, bare, "ca", Some("client"));
    assert_eq!(ours_says("3", &flags, get), (true, "k\nv\n".to_owned()));
    let blind =
        [&tool_flags("3", &papers, &url, "other-ca", Some("client"))[..], &["--insecure-skip-tls-verify".into()]];
    assert_eq!(ours_says("3", &blind.concat(), get), (true, "k\nv\n".to_owned()));
}

/// Ours, 3.5 and 3.4 in one cluster: streams, posts and snapshots go both ways between rustls and Go's TLS.
#[test]
fn members_of_all_kinds_speak_tls_with_each_other() {
    let (Some(tool), Some(newer), Some(older)) = (etcdctl(), reference(), reference_with_v2()) else {
        eprintln!("skipped: there is no real etcd; .ci/peers fetches some");
        return;
    };
    let papers = Papers::new();
    let mut cluster = cluster(&papers, vec![ours(), newer, older]);
    for writer in 0..3 {
        let key = format!("from-{writer}");
        assert_eq!(stdout(&run(&tool, &papers, "client", cluster.member(writer), &["put", &key, "v"])), "OK\n");
        for reader in 0..3 {
            let got = stdout(&run(&tool, &papers, "client", cluster.member(reader), &["get", &key]));
            assert_eq!(got, format!("{key}\nv\n"), "of member {reader}");
        }
    }
}

/// etcd makes its own certificates with keys on P-521, which our TLS library does not know by itself.
#[test]
fn certificates_that_members_make_themselves_are_understood_both_ways() {
    let (Some(tool), Some(real)) = (etcdctl(), reference()) else {
        eprintln!("skipped: there is no real etcd; .ci/peers fetches some");
        return;
    };
    let papers = Papers::new();
    let blind = tls::Settings { insecure_skip_verify: true, ..tls::Settings::default() };
    let tls = Some(Arc::new(tls::Connector::new(&blind, &[]).expect("a connector")));
    let flags = vec!["--auto-tls".into(), "--peer-auto-tls".into()];
    let setup = Setup { flags, tls, ..Setup::new(vec![ours(), real.clone(), ours()]) };
    let mut cluster = Cluster::start(setup).expect("the cluster starts");
    let ask = |server: &Server, arguments: &[&str]| {
        let mut command = Command::new(&tool);
        command.env("ETCDCTL_API", "3").args(["--endpoints", &server.client_url()]);
        // Who has the certificate of a member trusts that member.
        command.arg("--cacert").arg(server.data_dir().join("fixtures/client/cert.pem")).args(arguments);
        stdout(&command.output().expect("etcdctl runs"))
    };
    assert_eq!(ask(cluster.member(0), &["put", "k", "v"]), "OK\n");
    assert_eq!(ask(cluster.member(1), &["get", "k"]), "k\nv\n");
    // Our server goes on with what an etcd has made.
    let theirs = cluster.member(1).data_dir().join("fixtures");
    for kind in ["client", "peer"] {
        for file in ["cert.pem", "key.pem"] {
            let to = cluster.member(2).data_dir().join("fixtures").join(kind).join(file);
            std::fs::copy(theirs.join(kind).join(file), to).expect("the file can be copied");
        }
    }
    cluster.member(2).stop().expect("it stops");
    cluster.restart(2).expect("it starts with keys on P-521");
    assert_eq!(ask(cluster.member(2), &["get", "k"]), "k\nv\n");
    drop(papers);
}

#[test]
fn one_address_can_speak_both_and_unix_sockets_either() {
    let papers = Papers::new();
    let [both] = free_addresses().expect("a free port");
    let dir = tempfile::tempdir().expect("a directory");
    let (plain, secure) = (dir.path().join("plain"), dir.path().join("secure"));
    let listen = format!("http://{both},https://{both},unix://{},unixs://{}", plain.display(), secure.display());
    let mut flags = papers.client_port_flags();
    flags.extend(["--listen-client-urls".into(), listen.into()]);
    let server = Server::spawned(&ours(), Options { flags, ..Options::default() }).expect("it can be started");
    let tls = client::Tls {
        cacert: papers.path("ca").display().to_string(),
        cert: papers.path("client").display().to_string(),
        key: papers.path("client-key").display().to_string(),
        ..client::Tls::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let endpoints = [
            format!("http://{both}"),
            format!("https://{both}"),
            format!("unix://{}", plain.display()),
            format!("unixs://{}", secure.display()),
        ];
        for endpoint in endpoints {
            // As in etcd's client, a Unix socket without a scheme of TLS is in TLS if the client has been given any.
            let tls = (!endpoint.starts_with("unix:")).then(|| tls.clone());
            let config = client::Config { tls, ..client::Config::for_endpoints([endpoint.clone()]) };
            let client = client::Client::new(config).expect("a client").with_timeout(Some(PATIENCE));
            client.put(client::Put::new("k", endpoint.clone())).await.unwrap_or_else(|e| panic!("{endpoint}: {e}"));
        }
    });
    let log = server.log();
    for line in ["serving client traffic securely", "serving client traffic insecurely"] {
        assert!(log.contains(line), "no {line:?} in\n{log}");
    }
    assert!(log.contains("scheme is http or unix while key and cert files are present; ignoring key and cert files"));
}

/// GHSA-3wh4-j44w-pg92: with `--listen-client-http-urls`, the listener for gRPC did not look at the revocation list.
#[test]
fn a_revoked_certificate_is_refused_on_split_listeners() {
    let papers = Papers::new();
    papers.write_pair("revoked", &papers.authority.sign(&Leaf { serial: 0xdead, ..Leaf::named("alice", &[]) }));
    papers.write("crl", &papers.authority.revoke(&[0xdead]));
    let [grpc, http] = free_addresses().expect("free ports");
    let mut flags = papers.client_port_flags();
    flags.push(format!("--listen-client-urls=https://{grpc}").into());
    flags.push(format!("--listen-client-http-urls=https://{http}").into());
    let server = Server::spawned(&ours(), Options { flags, ..Options::default() }).expect("it can be started");
    let client = |name: &str| {
        let tls = client::Tls {
            cacert: papers.path("ca").display().to_string(),
            cert: papers.path(name).display().to_string(),
            key: papers.path(&format!("{name}-key")).display().to_string(),
            ..client::Tls::default()
        };
        let config = client::Config { tls: Some(tls), ..client::Config::for_endpoints([format!("https://{grpc}")]) };
        client::Client::new(config).expect("a client")
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let good = client("client").with_timeout(Some(PATIENCE));
        good.put(client::Put::new("k", "v")).await.expect("a good certificate is let in");
        let revoked = client("revoked").with_timeout(Some(Duration::from_secs(1)));
        revoked.put(client::Put::new("k", "w")).await.expect_err("a revoked one is not");
    });
    wait_for_line(&server, "rejected connection on client endpoint", "transport: certificate serial dead revoked");
    let get = |name: &str| {
        let connector = papers.connector(name, &["http/1.1"]);
        let socket = TcpStream::connect(http)?;
        let mut stream = connector.connect_blocking(socket, "127.0.0.1")?;
        stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    assert!(get("client").expect("a good certificate is let in").contains("\"health\""));
    get("revoked").expect_err("a revoked one is not");
}

/// GHSA-6vch-q96h-7gc3, as an attacker does it: many connections that say nothing, held open.
#[test]
fn silent_connections_leave_other_clients_unhurt() {
    let papers = Papers::new();
    let options =
        Options { flags: papers.client_port_flags(), tls: Some(papers.connector("client", &[])), ..Options::default() };
    let server = Server::start(&ours(), options).expect("it starts");
    let mut silent = Vec::new();
    for _ in 0..2_500 {
        silent.push(TcpStream::connect(server.client_addr()).expect("connected"));
    }
    for _ in 0..20 {
        assert!(server.get("/health").expect("it answers").contains("true"));
    }
    // The oldest have been closed to keep within the bound, which an end of their stream shows.
    silent[0].set_read_timeout(Some(PATIENCE)).expect("a timeout");
    assert_eq!(silent[0].read(&mut [0]).unwrap_or(0), 0);
}

/// What goes on while files are replaced: connections that stay, and new ones all the time.
struct Load {
    stop: AtomicBool,
    handshakes: AtomicU64,
    requests: AtomicU64,
}

/// Asks over and over on one connection, which must not end.
fn stay(server: std::net::SocketAddr, connector: &tls::Connector, load: &Load) {
    let socket = TcpStream::connect(server).expect("connected");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut stream = connector.connect_blocking(socket, "127.0.0.1").expect("the first handshake");
    while !load.stop.load(Ordering::Relaxed) {
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").expect("the stream is open");
        let mut answer = Vec::new();
        while !answer.ends_with(b"}") {
            let mut byte = [0];
            stream.read_exact(&mut byte).expect("the stream goes on");
            answer.push(byte[0]);
        }
        load.requests.fetch_add(1, Ordering::Relaxed);
    }
}

/// Connects over and over.
fn come_back(server: std::net::SocketAddr, connector: &tls::Connector, load: &Load) {
    while !load.stop.load(Ordering::Relaxed) {
        let socket = TcpStream::connect(server).expect("connected");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut stream = connector.connect_blocking(socket, "127.0.0.1").expect("a handshake");
        stream.write_all(b"GET /version HTTP/1.0\r\n\r\n").expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.contains("etcdserver"), "{answer}");
        load.handshakes.fetch_add(1, Ordering::Relaxed);
    }
}

/// Leaves, authority and revocation list are replaced under load: no stream is cut, no handshake fails, neither of clients
/// nor of members.
#[test]
fn new_certificates_authorities_and_lists_disturb_nobody() {
    let papers = Papers::new();
    let mut cluster = cluster(&papers, vec![ours(); 3]);
    let streams_before = lost_streams(&cluster);
    let load = Load { stop: AtomicBool::new(false), handshakes: AtomicU64::new(0), requests: AtomicU64::new(0) };
    let connector = papers.connector("client", &["http/1.1"]);
    let addresses = cluster.addresses();
    std::thread::scope(|scope| {
        /// Ends the load also when a step fails.
        struct Stop<'a>(&'a Load);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.stop.store(true, Ordering::Relaxed);
            }
        }
        let _stop = Stop(&load);
        let workers: Vec<_> = addresses
            .iter()
            .flat_map(|&address| {
                let (connector, load) = (&connector, &load);
                [
                    scope.spawn(move || stay(address, connector, load)),
                    scope.spawn(move || come_back(address, connector, load)),
                ]
            })
            .collect();
        // A step is over when every handshake that began before it is.
        let settle = || {
            let (handshakes, deadline) = (load.handshakes.load(Ordering::Relaxed), Instant::now() + PATIENCE);
            while load.handshakes.load(Ordering::Relaxed) < handshakes + 12 {
                assert!(
                    Instant::now() < deadline && !workers.iter().any(|worker| worker.is_finished()),
                    "the load ended"
                );
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        settle();
        for round in 0..3 {
            papers.write_pair("server", &papers.authority.sign(&Papers::server()));
            papers.write_pair("client", &papers.authority.sign(&Leaf::named("root", &[])));
            papers.write("crl", &papers.authority.revoke(&[1000 + round]));
            settle();
        }
        let next = Authority::new("next ca");
        papers.write("ca", &(papers.authority.pem() + &next.pem()));
        settle();
        papers.write_pair("server", &next.sign(&Papers::server()));
        papers.write_pair("client", &next.sign(&Leaf::named("root", &[])));
        settle();
        papers.write("ca", &next.pem());
        papers.write("crl", &next.revoke(&[1, 2, 3]));
        settle();
    });
    let (handshakes, requests) = (load.handshakes.into_inner(), load.requests.into_inner());
    println!("{handshakes} handshakes, {requests} requests on connections that stayed");
    assert_eq!(lost_streams(&cluster), streams_before, "no stream between members ended");
    for server in cluster.servers() {
        assert!(!server.log().contains("rejected connection"), "{}", server.log_tail());
    }
    // The new files count for members as well: one that starts again is let in by the others.
    cluster.member(0).stop().expect("it stops");
    cluster.restart(0).expect("it starts");
}

/// How often each member has lost a stream.
fn lost_streams(cluster: &Cluster) -> BTreeMap<String, usize> {
    let lost = |server: &Server| server.log().matches("lost TCP streaming connection").count();
    cluster.servers().iter().map(|server| (server.name().to_owned(), lost(server))).collect()
}
