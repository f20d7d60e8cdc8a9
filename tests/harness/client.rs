//! A gRPC client with one stub per service, all on one connection.

use std::net::SocketAddr;
use std::time::Duration;

use proto::etcdserverpb::cluster_client::ClusterClient;
use proto::etcdserverpb::kv_client::KvClient;
use proto::etcdserverpb::lease_client::LeaseClient;
use proto::etcdserverpb::maintenance_client::MaintenanceClient;
use proto::etcdserverpb::watch_client::WatchClient;
use tonic::transport::{Channel, Endpoint};

/// The stubs; cloning is cheap and shares the connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// Keys and values.
    pub kv: KvClient<Channel>,
    /// Leases.
    pub lease: LeaseClient<Channel>,
    /// Watches.
    pub watch: WatchClient<Channel>,
    /// Membership.
    pub cluster: ClusterClient<Channel>,
    /// Status, alarms, hashes, snapshots.
    pub maintenance: MaintenanceClient<Channel>,
}

/// Connects to a server; it must be listening already.
pub async fn connect(server: SocketAddr) -> Result<Client, tonic::transport::Error> {
    Ok(over(endpoint(server)?.connect().await?))
}

/// A client that connects when it is first used, and again whenever the connection breaks. Must be called inside the
/// runtime that will use it.
pub fn lazily(server: SocketAddr) -> Client {
    let endpoint = endpoint(server).expect("an address makes a URL");
    over(endpoint.connect_lazy())
}

fn endpoint(server: SocketAddr) -> Result<Endpoint, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{server}"))?;
    Ok(endpoint.connect_timeout(Duration::from_secs(5)).tcp_nodelay(true))
}

fn over(channel: Channel) -> Client {
    Client {
        kv: KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
        lease: LeaseClient::new(channel.clone()),
        watch: WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
        cluster: ClusterClient::new(channel.clone()),
        maintenance: MaintenanceClient::new(channel).max_decoding_message_size(usize::MAX),
    }
}
