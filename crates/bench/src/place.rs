//! Where a server is, and how to connect to it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::LazyLock;

use tls::{Connector, Settings, Socket, Stream};
use tokio::net::TcpStream;

/// An address, in TLS or in the clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where.
    pub address: SocketAddr,
    /// In TLS. Whose certificate the server shows is not looked at: this measures.
    pub is_secure: bool,
}

static CONNECTOR: LazyLock<Connector> = LazyLock::new(|| {
    let settings = Settings { insecure_skip_verify: true, ..Settings::default() };
    Connector::new(&settings, &["h2"]).expect("settings without files are good")
});

impl Place {
    /// Connects.
    pub async fn connect(self) -> io::Result<Stream> {
        let socket = TcpStream::connect(self.address).await?;
        socket.set_nodelay(true)?;
        if self.is_secure {
            return CONNECTOR.connect(Socket::Tcp(socket), &self.address.ip().to_string()).await;
        }
        Ok(socket.into())
    }
}

/// In the clear.
impl From<SocketAddr> for Place {
    fn from(address: SocketAddr) -> Place {
        Place { address, is_secure: false }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address.fmt(out)
    }
}
