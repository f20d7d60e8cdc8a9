//! TLS towards members, on a thread that waits.

use super::http::{Error, Stream, is_timeout};
use std::cell::OnceCell;
use std::io::{self, Read, Write};
use std::rc::Rc;
use std::time::Duration;
use tls::{Connector, Settings, TlsError};

/// What the flags say about TLS. Members decide whether it is spoken: the list of them that a cluster gives may have both
/// kinds.
#[derive(Clone, Debug)]
pub struct Tls {
    settings: Settings,
    /// Made when it is first needed: reading the system's authorities takes a while.
    connector: Rc<OnceCell<Connector>>,
}

impl Tls {
    /// With these settings, whose files are read now, so that one that is missing is told whether a member needs it or not.
    ///
    /// # Errors
    /// When a file cannot be read or used.
    pub fn new(settings: Settings) -> Result<Tls, TlsError> {
        let tls = Tls { settings, connector: Rc::default() };
        if tls.settings != Settings::default() {
            tls.connector()?;
        }
        Ok(tls)
    }

    fn connector(&self) -> Result<&Connector, TlsError> {
        if self.connector.get().is_none() {
            let _first = self.connector.set(Connector::new(&self.settings, &[])?);
        }
        Ok(self.connector.get().expect("it was just set"))
    }

    /// Runs the handshake with the member at the other end of `socket`, which was dialled under the name `host`. `waiting`
    /// is the same socket, to set how long may be waited for it.
    ///
    /// # Errors
    /// When the member is not who it should be, or does not answer in time.
    pub fn connect<S: Stream + 'static>(&self, socket: S, waiting: S, host: &str) -> Result<Box<dyn Stream>, Error> {
        let connector = self.connector().map_err(|error| Error::Malformed(error.to_string()))?;
        let bytes = connector.connect_blocking(socket, host).map_err(|error| {
            let text =
                if is_timeout(&error) { "net/http: TLS handshake timeout".to_owned() } else { error.to_string() };
            Error::Malformed(text)
        })?;
        Ok(Box::new(Secure { bytes, waiting }))
    }
}

/// A connection in TLS.
struct Secure<B, S> {
    bytes: B,
    /// The socket under it.
    waiting: S,
}

impl<B: Read, S> Read for Secure<B, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(buffer)
    }
}

impl<B: Write, S> Write for Secure<B, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.bytes.flush()
    }
}

impl<B: Read + Write, S: Stream> Stream for Secure<B, S> {
    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.waiting.set_timeout(timeout)
    }
}
