//! Telling systemd that the member is ready (`Type=notify`).

use std::os::unix::net::UnixDatagram;

/// Sends `READY=1` to the socket in `NOTIFY_SOCKET`, if there is one.
pub fn ready() {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty()) else { return };
    tracing::info!("notifying init daemon");
    let sent = UnixDatagram::unbound().and_then(|socket| {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::ffi::OsStrExt;
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => std::os::unix::net::SocketAddr::from_abstract_name(name)?,
            None => std::os::unix::net::SocketAddr::from_pathname(&path)?,
        };
        socket.send_to_addr(b"READY=1", &address)
    });
    match sent {
        Ok(_) => tracing::info!("successfully notified init daemon"),
        Err(error) => tracing::error!(error = %error, "failed to notify init daemon"),
    }
}
