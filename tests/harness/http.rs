//! A client of HTTP/1.1 that keeps its connection, for tests of what is not gRPC. It adds nothing to a request but what
//! the protocol asks for, and shows an answer as it came.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long an answer, or the next line of one, may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// The longest line of a head.
const MAX_LINE: u64 = 64 << 10;
/// The longest body.
const MAX_BODY: usize = 256 << 20;

/// What to ask.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpRequest {
    /// `GET` and so on.
    pub method: &'static str,
    /// The path with its query, escaped.
    pub path: String,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
    /// None sends no body.
    pub body: Option<String>,
}

impl HttpRequest {
    /// Without further headers or a body.
    pub fn new(method: &'static str, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: None }
    }

    /// With a form, already escaped.
    pub fn with_form(mut self, form: impl Into<String>) -> Self {
        self.headers.push(("Content-Type", "application/x-www-form-urlencoded".into()));
        self.body = Some(form.into());
        self
    }
}

impl fmt::Debug for HttpRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        self.body.iter().try_for_each(|body| write!(f, " [{body}]"))
    }
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpReply {
    /// The status.
    pub status: u16,
    /// Headers; their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body; bytes that are not UTF-8 are replaced.
    pub body: String,
}

impl HttpReply {
    /// A header that is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.headers.get(name)?.parse().ok()
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// One connection, opened when it is needed.
#[derive(Debug)]
pub struct Http {
    server: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
}

impl Http {
    /// A client of this server.
    pub fn new(server: SocketAddr) -> Self {
        Self { server, connection: None }
    }

    /// Asks, and reads the whole answer.
    ///
    /// # Errors
    /// When the server cannot be reached, does not answer in time, or answers with what is not HTTP. The next request
    /// gets a new connection.
    pub async fn ask(&mut self, request: &HttpRequest) -> io::Result<HttpReply> {
        let mut answer = self.begin(request).await?;
        let body = timeout(ANSWER_WITHIN, answer.rest()).await.map_err(|_| late())??;
        let body = String::from_utf8_lossy(&body).into_owned();
        let OpenReply { status, headers, connection, .. } = answer;
        if headers.get("connection").is_none_or(|value| value != "close") {
            self.connection = Some(connection);
        }
        Ok(HttpReply { status, headers, body })
    }

    /// Asks, and reads the head of the answer. The connection goes with it.
    ///
    /// # Errors
    /// As [`Http::ask`].
    pub async fn begin(&mut self, request: &HttpRequest) -> io::Result<OpenReply> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let socket = TcpStream::connect(self.server).await?;
                socket.set_nodelay(true)?;
                BufReader::new(socket)
            }
        };
        let mut text = format!("{} {} HTTP/1.1\r\nHost: {}\r\n", request.method, request.path, self.server);
        for (name, value) in &request.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(body) = &request.body {
            text.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        } else {
            text.push_str("\r\n");
        }
        let talk = async {
            connection.write_all(text.as_bytes()).await?;
            head(&mut connection).await
        };
        let (status, headers) = timeout(ANSWER_WITHIN, talk).await.map_err(|_| late())??;
        let number = |name: &str| headers.get(name).and_then(|value| value.parse().ok());
        let framing = if request.method == "HEAD" || status == 204 {
            Framing::Length(0)
        } else if headers.get("transfer-encoding").is_some_and(|value| value == "chunked") {
            Framing::Chunks
        } else {
            Framing::Length(number("content-length").unwrap_or(0))
        };
        Ok(OpenReply { status, headers, connection, framing, unread: Vec::new() })
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

async fn line(connection: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = Vec::new();
    connection.take(MAX_LINE).read_until(b'\n', &mut line).await?;
    let line = line.strip_suffix(b"\r\n").ok_or_else(|| wrong("a line without an end"))?;
    Ok(String::from_utf8_lossy(line).into_owned())
}

async fn head(connection: &mut BufReader<TcpStream>) -> io::Result<(u16, BTreeMap<String, String>)> {
    let first = line(connection).await?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| wrong("a line without a status"))?;
    let mut headers = BTreeMap::new();
    loop {
        let header = line(connection).await?;
        if header.is_empty() {
            return Ok((status, headers));
        }
        let (name, value) = header.split_once(':').ok_or_else(|| wrong("a header without a colon"))?;
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
}

#[derive(Debug)]
enum Framing {
    /// Bytes that are still to come.
    Length(usize),
    Chunks,
}

/// An answer whose body is still coming.
#[derive(Debug)]
pub struct OpenReply {
    /// The status.
    pub status: u16,
    /// Headers; their names in lower case.
    pub headers: BTreeMap<String, String>,
    connection: BufReader<TcpStream>,
    framing: Framing,
    /// Received and not given out yet.
    unread: Vec<u8>,
}

impl OpenReply {
    /// The next line of the body, without its end; `None` after the last.
    ///
    /// # Errors
    /// As [`Http::ask`].
    pub async fn line(&mut self) -> io::Result<Option<String>> {
        timeout(ANSWER_WITHIN, self.patient_line()).await.map_err(|_| late())?
    }

    /// The same, however long it takes.
    ///
    /// # Errors
    /// As [`Http::ask`], but never because of the time.
    pub async fn patient_line(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            if !self.more().await? {
                let rest = std::mem::take(&mut self.unread);
                return Ok(Some(String::from_utf8_lossy(&rest).into_owned()).filter(|rest| !rest.is_empty()));
            }
        }
    }

    async fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.more().await? {}
        Ok(std::mem::take(&mut self.unread))
    }

    /// Receives a piece of the body; false at its end.
    async fn more(&mut self) -> io::Result<bool> {
        let length = match self.framing {
            Framing::Length(length) => length,
            Framing::Chunks => {
                let length = line(&mut self.connection).await?;
                usize::from_str_radix(&length, 16).map_err(|_| wrong("a chunk without a length"))?
            }
        };
        if self.unread.len() + length > MAX_BODY {
            return Err(wrong("a body that is too long"));
        }
        let begin = self.unread.len();
        self.unread.resize(begin + length, 0);
        self.connection.read_exact(&mut self.unread[begin..]).await?;
        match self.framing {
            Framing::Length(_) => self.framing = Framing::Length(0),
            // Each chunk, and the last one's missing trailer, ends with an empty line.
            Framing::Chunks => {
                line(&mut self.connection).await?;
                if length == 0 {
                    self.framing = Framing::Length(0);
                }
            }
        }
        Ok(length > 0)
    }
}
