//! `etcd gateway start` between a client and two servers that answer with what they are sent.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A gateway that can be reached. Dropping it ends it.
struct Gateway {
    process: Child,
    address: SocketAddr,
}

impl Gateway {
    fn start(endpoints: &[SocketAddr]) -> Gateway {
        let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = free.local_addr().expect("it is bound");
        drop(free);
        let endpoints: Vec<String> = endpoints.iter().map(|endpoint| format!("http://{endpoint}")).collect();
        let mut command = Command::new(env!("CARGO_BIN_EXE_etcd"));
        command.args(["gateway", "start", "--listen-addr", &address.to_string(), "--retry-delay", "50ms"]);
        command.args(["--endpoints", &endpoints.join(",")]).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the gateway starts");
        let mut lines = BufReader::new(process.stderr.take().expect("stderr is a pipe")).lines();
        let is_ready = lines.by_ref().map_while(Result::ok).any(|line| line.contains("ready to proxy client requests"));
        assert!(is_ready, "it ended before it was ready");
        // Whatever it logs later must not fill the pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Gateway { process, address }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("the gateway listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream
    }

    /// What comes back for `words`, up to the end.
    fn ask(&self, words: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(words.as_bytes()).expect("it takes words");
        stream.shutdown(Shutdown::Write).expect("the end can be said");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer ends");
        answer
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// Answers each connection with `name` and all that it is sent, once that has ended.
fn server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(name, stream));
        }
    });
    address
}

fn answer(name: &str, mut stream: TcpStream) {
    let mut words = String::new();
    // A client that goes away is not this server's business.
    if stream.read_to_string(&mut words).is_ok() {
        stream.write_all(format!("{name}:{words}").as_bytes()).ok();
    }
}

/// An address at which nobody listens.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").expect("a port is free").local_addr().expect("it is bound")
}

#[test]
fn servers_take_turns_and_who_is_dead_is_passed_over() {
    let gateway = Gateway::start(&[server("a"), nobody(), server("b")]);
    let answers: Vec<String> = (0..6).map(|n| gateway.ask(&n.to_string())).collect();
    for (n, answer) in answers.iter().enumerate() {
        assert!([format!("a:{n}"), format!("b:{n}")].contains(answer), "{answers:?}");
    }
    assert!(["a:", "b:"].iter().all(|name| answers.iter().any(|answer| answer.starts_with(name))), "{answers:?}");
}

#[test]
fn a_connection_is_closed_while_nobody_is_there_and_served_once_somebody_is() {
    let place = nobody();
    let gateway = Gateway::start(&[place]);
    let closed = gateway.connect().read(&mut [0; 1]);
    assert!(matches!(closed, Ok(0)) || closed.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    let listener = TcpListener::bind(place).expect("the port is free again");
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| answer("late", stream)));
    // It finds out within its retry delay, or a little later on a busy machine.
    let served = (0..600).any(|_| {
        let mut stream = gateway.connect();
        let asked = stream.write_all(b"x").and_then(|()| stream.shutdown(Shutdown::Write));
        let mut answer = String::new();
        let is_served = asked.is_ok() && stream.read_to_string(&mut answer).is_ok() && answer == "late:x";
        if !is_served {
            std::thread::sleep(Duration::from_millis(50));
        }
        is_served
    });
    assert!(served);
}
