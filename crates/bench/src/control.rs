//! Calls outside the measured load: set-up, compaction, listing, probes. They run over the `h2` crate with whole
//! messages, and tell the server's own error text.

use crate::place::Place;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::SendRequest;
use http::HeaderMap;
use prost::Message;

/// Large enough that no answer of a bench waits for a window.
const WINDOW: u32 = 1 << 30;
/// The longest answer that is accepted.
const MAX_MESSAGE: usize = 1 << 30;
const GRPC_PREFIX: usize = 5;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Could not connect.
    #[error("cannot connect to {0}: {1}")]
    Connect(Place, std::io::Error),
    /// The connection or the stream broke.
    #[error("{path}: {source}")]
    Http2 {
        /// The call's path.
        path: String,
        /// What HTTP/2 says.
        source: h2::Error,
    },
    /// The server refused.
    #[error("{path}: grpc status {code}: {message}")]
    Status {
        /// The call's path.
        path: String,
        /// gRPC status code.
        code: u32,
        /// The server's text.
        message: String,
    },
    /// The answer is not gRPC.
    #[error("{path}: {what}")]
    Malformed {
        /// The call's path.
        path: String,
        /// What is wrong with it.
        what: String,
    },
}

/// A connection for single calls. Clones share it.
#[derive(Clone)]
pub struct Control {
    requests: SendRequest<Bytes>,
    authority: String,
}

impl Control {
    /// Connects; does not wait for the server's first bytes.
    pub async fn connect(place: Place) -> Result<Control, CallError> {
        let socket = place.connect().await.map_err(|error| CallError::Connect(place, error))?;
        let handshake = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .handshake(socket)
            .await;
        let (requests, connection) = handshake.map_err(|source| http2("connect", source))?;
        // Ends when the last clone of `requests` is gone; its error reaches the calls.
        tokio::spawn(connection);
        Ok(Control { requests, authority: place.to_string() })
    }

    /// One request, one answer.
    pub async fn call<A: Message + Default>(&self, path: &str, request: &impl Message) -> Result<A, CallError> {
        let answer = self.call_encoded(path, &request.encode_to_vec()).await?;
        A::decode(answer).map_err(|error| malformed(path, error.to_string()))
    }

    /// One request given as bytes, one answer as bytes.
    pub async fn call_encoded(&self, path: &str, request: &[u8]) -> Result<Bytes, CallError> {
        let mut requests = self.requests.clone().ready().await.map_err(|source| http2(path, source))?;
        let head = http::Request::post(format!("http://{}{path}", self.authority))
            .version(http::Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(|error| malformed(path, error.to_string()))?;
        let (response, mut body) = requests.send_request(head, false).map_err(|source| http2(path, source))?;
        let mut framed = BytesMut::with_capacity(request.len() + GRPC_PREFIX);
        framed.put_u8(0);
        framed.put_u32(request.len() as u32);
        framed.put_slice(request);
        body.send_data(framed.freeze(), true).map_err(|source| http2(path, source))?;
        let response = response.await.map_err(|source| http2(path, source))?;
        if response.status() != http::StatusCode::OK {
            return Err(malformed(path, format!("HTTP status {}", response.status())));
        }
        check_status(path, response.headers(), false)?;
        read_answer(path, response.into_body()).await
    }
}

async fn read_answer(path: &str, mut body: RecvStream) -> Result<Bytes, CallError> {
    let mut received = BytesMut::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk.map_err(|source| http2(path, source))?;
        body.flow_control().release_capacity(chunk.len()).map_err(|source| http2(path, source))?;
        if received.len() + chunk.len() > MAX_MESSAGE {
            return Err(malformed(path, format!("an answer of more than {MAX_MESSAGE} bytes")));
        }
        received.extend_from_slice(&chunk);
    }
    if let Some(trailers) = body.trailers().await.map_err(|source| http2(path, source))? {
        check_status(path, &trailers, true)?;
    }
    if received.len() < GRPC_PREFIX {
        return Err(malformed(path, "the answer has no message".to_owned()));
    }
    let compressed = received.get_u8();
    let length = received.get_u32() as usize;
    if compressed != 0 || length != received.len() {
        return Err(malformed(path, format!("one message of {length} bytes expected, {} came", received.len())));
    }
    Ok(received.freeze())
}

/// The status in headers or trailers; in trailers it must be there.
fn check_status(path: &str, headers: &HeaderMap, required: bool) -> Result<(), CallError> {
    let Some(status) = headers.get("grpc-status") else {
        return if required { Err(malformed(path, "no grpc-status".to_owned())) } else { Ok(()) };
    };
    let code = status.to_str().ok().and_then(|code| code.parse().ok()).unwrap_or(2);
    if code == 0 {
        return Ok(());
    }
    let message = headers.get("grpc-message").map(|text| String::from_utf8_lossy(text.as_bytes()).into_owned());
    Err(CallError::Status { path: path.to_owned(), code, message: message.unwrap_or_default() })
}

fn http2(path: &str, source: h2::Error) -> CallError {
    CallError::Http2 { path: path.to_owned(), source }
}

fn malformed(path: &str, what: String) -> CallError {
    CallError::Malformed { path: path.to_owned(), what }
}
