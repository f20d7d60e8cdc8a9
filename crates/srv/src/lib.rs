//! Finding endpoints by DNS SRV records (RFC 1035, RFC 2782): a question over UDP, an answer over UDP or, if that does
//! not fit, over TCP.

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream, UdpSocket};
use std::time::Duration;

const PORT: u16 = 53;
/// How long one name server is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
const TYPE_SRV: u16 = 33;
const CLASS_IN: u16 = 1;
/// An answer over UDP is no longer than this, in bytes (RFC 1035, 4.2.1).
const UDP_BOUND: usize = 512;

/// A target of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Lower ones come first.
    pub priority: u16,
    /// Its share among those of the same priority.
    pub weight: u16,
    /// TCP port.
    pub port: u16,
    /// Host name, without the dot at its end.
    pub host: String,
}

impl Target {
    /// `host:port`.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// The endpoints that the records of a domain name: `_etcd-client-ssl._tcp` with TLS, `_etcd-client._tcp` without, each with
/// `-service` behind it if there is one.
pub fn client_endpoints(domain: &str, service: &str, secure_only: bool) -> Result<Vec<Endpoint>, String> {
    let suffix = if service.is_empty() { String::new() } else { format!("-{service}") };
    let secure = look_up(&format!("_etcd-client-ssl{suffix}._tcp.{domain}"));
    let plain = if secure_only { Ok(Vec::new()) } else { look_up(&format!("_etcd-client{suffix}._tcp.{domain}")) };
    let failure = match (&secure, &plain) {
        (Err(error), Err(_)) => Some(error.to_string()),
        (Err(error), Ok(_)) if secure_only => Some(error.to_string()),
        _ => None,
    };
    if let Some(reason) = failure {
        return Err(format!("dns lookup errors: {reason} (domain {domain})"));
    }
    let named =
        |scheme: &'static str, targets: Vec<Target>| targets.into_iter().map(move |target| Endpoint { scheme, target });
    let found: Vec<Endpoint> =
        named("https", secure.unwrap_or_default()).chain(named("http", plain.unwrap_or_default())).collect();
    if found.is_empty() {
        return Err(format!("no SRV record of an etcd service in domain {domain}"));
    }
    Ok(found)
}

/// Where a client may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `https` or `http`.
    pub scheme: &'static str,
    /// Where, and with what preference.
    pub target: Target,
}

/// The targets of a service, best first, from the first name server that answers.
pub fn look_up(name: &str) -> io::Result<Vec<Target>> {
    let config = std::fs::read_to_string("/etc/resolv.conf")?;
    let servers: Vec<IpAddr> = config
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|server| server.trim().parse().ok())
        .collect();
    let mut failure = io::Error::other("no name server in /etc/resolv.conf");
    for server in servers {
        match ask(server, name) {
            Ok(mut targets) => {
                targets.sort_by_key(|target| (target.priority, u16::MAX - target.weight));
                return Ok(targets);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

fn ask(server: IpAddr, name: &str) -> io::Result<Vec<Target>> {
    // The socket is connected, so only the server's answers arrive; the ID guards against late ones.
    let id = (std::process::id() as u16) ^ 0x6574;
    let question = question(id, name)?;
    let socket = UdpSocket::bind(if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect((server, PORT))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&question)?;
    let mut answer = vec![0; UDP_BOUND];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    if answer.get(2).is_some_and(|flags| flags & 0x02 != 0) {
        answer = ask_by_tcp(server, &question)?;
    }
    read_answer(id, &answer).map_err(|reason| io::Error::other(format!("{name}: {reason}")))
}

/// For answers that were cut off. Over TCP every message has its length in front.
fn ask_by_tcp(server: IpAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&(server, PORT).into(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn question(id: u16, name: &str) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    // A standard question that asks for recursion, one entry.
    for word in [id, 0x0100, 1, 0, 0, 0] {
        out.extend_from_slice(&word.to_be_bytes());
    }
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..64).contains(length));
        out.push(length.ok_or_else(|| io::Error::other(format!("{name:?} is no domain name")))?);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend_from_slice(&[TYPE_SRV, CLASS_IN].map(u16::to_be_bytes).concat());
    Ok(out)
}

/// A position in an answer. Nothing outside of the answer can be read.
struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn bytes(&mut self, count: usize) -> Result<&[u8], &'static str> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.message.len()).ok_or("the answer is cut off")?;
        let bytes = &self.message[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn word(&mut self) -> Result<u16, &'static str> {
        let bytes = self.bytes(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A name; parts of it may stand earlier in the message.
    fn name(&mut self) -> Result<String, &'static str> {
        let mut labels = Vec::new();
        let mut after = None;
        // A name has at most 127 labels, and each may be reached by a jump.
        for _ in 0..256 {
            let length = usize::from(self.bytes(1)?[0]);
            match length >> 6 {
                0 if length == 0 => {
                    self.at = after.unwrap_or(self.at);
                    return Ok(labels.join("."));
                }
                0 => {
                    let label = String::from_utf8_lossy(self.bytes(length)?).into_owned();
                    labels.push(label);
                }
                3 => {
                    let low = usize::from(self.bytes(1)?[0]);
                    after = after.or(Some(self.at));
                    self.at = (length & 0x3f) << 8 | low;
                }
                _ => return Err("a name of an unknown kind"),
            }
        }
        Err("a name without end")
    }
}

fn read_answer(id: u16, message: &[u8]) -> Result<Vec<Target>, String> {
    let mut reader = Reader { message, at: 0 };
    let mut head = [0; 6];
    for word in &mut head {
        *word = reader.word()?;
    }
    let [answer_id, flags, questions, answers, ..] = head;
    if answer_id != id || flags & 0x8000 == 0 {
        return Err("an answer to another question".to_owned());
    }
    match flags & 0xf {
        0 => {}
        3 => return Err("no such host".to_owned()),
        code => return Err(format!("the name server answered with error {code}")),
    }
    for _ in 0..questions {
        reader.name()?;
        reader.bytes(4)?;
    }
    let mut targets = Vec::new();
    for _ in 0..answers {
        reader.name()?;
        let kind = reader.word()?;
        reader.bytes(6)?; // class and time to live
        let length = usize::from(reader.word()?);
        let end = reader.at + length;
        if kind == TYPE_SRV {
            let (priority, weight, port) = (reader.word()?, reader.word()?, reader.word()?);
            targets.push(Target { priority, weight, port, host: reader.name()? });
        }
        if end < reader.at {
            return Err("a record that is longer than it says".to_owned());
        }
        reader.at = end;
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record `0 10 2379 a.example.` for a question of the same domain, whose name it refers to.
    fn answer() -> Vec<u8> {
        let mut message = question(7, "_etcd-client._tcp.example").unwrap();
        message[2] = 0x81;
        message[7] = 1;
        let example = 12 + 1 + 12 + 1 + 4;
        message.extend_from_slice(&[0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 60, 0, 10]);
        message.extend_from_slice(&[0, 0, 0, 10, 0x09, 0x4b, 1, b'a', 0xc0, example]);
        message
    }

    #[test]
    fn a_record_names_host_and_port() {
        let expected = Target { priority: 0, weight: 10, port: 2379, host: "a.example".to_owned() };
        assert_eq!(read_answer(7, &answer()), Ok(vec![expected]));
        assert!(read_answer(8, &answer()).is_err(), "somebody else's answer");
    }

    /// Every cut and every flipped byte of an answer is an error or another answer, never a panic or an endless loop.
    #[test]
    fn a_damaged_answer_is_survived() {
        let whole = answer();
        for length in 0..whole.len() {
            assert!(read_answer(7, &whole[..length]).is_err(), "cut to {length}");
        }
        for at in 0..whole.len() {
            for flip in [0x01, 0x80, 0xc0, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] ^= flip;
                let _any = read_answer(7, &damaged);
            }
        }
    }
}
