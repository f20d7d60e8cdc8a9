//! Several members of one cluster, each any etcd, on 127.0.0.1 or in network namespaces of their own.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proto::etcdserverpb::{
    HashKvRequest, HashKvResponse, Member, MemberAddRequest, MemberListRequest, MoveLeaderRequest, RangeRequest,
    StatusRequest, StatusResponse,
};
use tls::Connector;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status};

use super::{
    Binary, Client, Network, NetworkError, Options, ProcessError, Seat, Server, StallingDisk, connect, free_addresses,
};

/// How long a cluster may take to agree: on a leader, on a change that it must accept, on equal data.
const AGREED_WITHIN: Duration = Duration::from_secs(60);
/// How long one member may take to answer before it is asked again, or taken to be out of reach.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Pause between two looks at a cluster; there is nothing to wait on.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Why a cluster did not do what it had to.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A member's process failed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The network could not be made or changed.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A disk that can hang could not be made, or did not hang.
    #[error("disk: {0}")]
    Disk(String),
    /// A member refused, or could not be asked.
    #[error("{member}: {what}: {answer}")]
    Asking {
        /// Which member.
        member: String,
        /// What it was asked for.
        what: &'static str,
        /// What came back.
        answer: String,
    },
    /// It did not happen in time.
    #[error("no {what} within {within:?}; last seen: {seen}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        within: Duration,
        /// The state that it was in.
        seen: String,
    },
    /// Members disagree about the same revision: the one thing that must never happen.
    #[error("members differ at revision {revision}: {hashes}")]
    Differ {
        /// Which revision.
        revision: i64,
        /// What each says.
        hashes: String,
    },
}

/// Where members live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// All on 127.0.0.1.
    Loopback,
    /// Each in a network namespace, with the addresses 192.168.99.100 and on; the calling thread joins their network.
    Namespaces,
}

/// What to start.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The program of each member.
    pub binaries: Vec<Binary>,
    /// Further flags of every member.
    pub flags: Vec<OsString>,
    /// Where they live.
    pub place: Place,
    /// `--initial-cluster-token`.
    pub token: String,
    /// Put every data directory on a disk that can be made to hang.
    pub stalling_disks: bool,
    /// How to connect to its members in TLS, if they speak it, with clients and each other.
    pub tls: Option<Arc<Connector>>,
}

impl Setup {
    /// These programs on 127.0.0.1, without further flags.
    pub fn new(binaries: Vec<Binary>) -> Setup {
        let token = "keelson-test".to_owned();
        Setup { binaries, flags: Vec::new(), place: Place::Loopback, token, stalling_disks: false, tls: None }
    }
}

/// A cluster. Dropping it kills its members and removes everything they had.
#[derive(Debug)]
pub struct Cluster {
    servers: Vec<Server>,
    setup: Setup,
    // After the servers, because they are dropped in this order.
    disks: Vec<StallingDisk>,
    network: Option<Network>,
}

impl Cluster {
    /// Starts all members and waits until each serves.
    pub fn start(setup: Setup) -> Result<Cluster, ClusterError> {
        let mut cluster = Cluster::spawned(setup)?;
        cluster.wait_ready()?;
        Ok(cluster)
    }

    /// Starts all members without waiting.
    pub fn spawned(setup: Setup) -> Result<Cluster, ClusterError> {
        let count = setup.binaries.len();
        let network = match setup.place {
            Place::Loopback => None,
            Place::Namespaces => Some(Network::create(count)?),
        };
        if let Some(network) = &network {
            network.enter()?;
        }
        let mut cluster = Cluster { servers: Vec::new(), setup, disks: Vec::new(), network };
        let mut seats = (0..count).map(|member| cluster.seat(member)).collect::<Result<Vec<Seat>, ClusterError>>()?;
        let scheme = if cluster.setup.tls.is_some() { "https" } else { "http" };
        let names: Vec<String> = seats.iter().map(|seat| format!("{}={scheme}://{}", seat.name, seat.peer)).collect();
        for seat in &mut seats {
            seat.initial_cluster = names.join(",");
        }
        for (member, seat) in seats.into_iter().enumerate() {
            let mut options = cluster.options(cluster.setup.flags.clone(), seat);
            options.flags.push("--initial-cluster-token".into());
            options.flags.push(cluster.setup.token.clone().into());
            if cluster.setup.stalling_disks {
                let disk = StallingDisk::create().map_err(ClusterError::Disk)?;
                options.data_dir = Some(disk.path().join("data"));
                cluster.disks.push(disk);
            }
            cluster.servers.push(Server::spawned(&cluster.setup.binaries[member], options)?);
        }
        Ok(cluster)
    }

    fn options(&self, flags: Vec<OsString>, seat: Seat) -> Options {
        let tls = self.setup.tls.clone();
        Options { flags, data_dir: None, peers_in_tls: tls.is_some(), tls, seat: Some(seat) }
    }

    /// Waits until every member that was started serves.
    pub fn wait_ready(&mut self) -> Result<(), ClusterError> {
        let mut started = self.servers.iter_mut().filter(|server| server.is_started());
        started.try_for_each(|server| server.wait_ready().map_err(ClusterError::from))
    }

    /// How many members it has been given, whether they run or not.
    pub fn len(&self) -> usize {
        self.servers.len()
    }

    /// Whether it has no members at all.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// One member's process.
    pub fn member(&mut self, member: usize) -> &mut Server {
        &mut self.servers[member]
    }

    /// All of them.
    pub fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// Where clients find the members.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(Server::client_addr).collect()
    }

    /// The network between the members.
    ///
    /// # Panics
    /// If they have none of their own.
    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("the members live in namespaces")
    }

    /// The disk under a member.
    ///
    /// # Panics
    /// If they were not asked for.
    pub fn disk(&self, member: usize) -> &StallingDisk {
        &self.disks[member]
    }

    /// Starts a member again, without waiting.
    pub fn spawn(&mut self, member: usize) -> Result<(), ClusterError> {
        Ok(self.servers[member].spawn()?)
    }

    /// Starts a member again and waits until it serves.
    pub fn restart(&mut self, member: usize) -> Result<(), ClusterError> {
        self.servers[member].spawn()?;
        Ok(self.servers[member].wait_ready()?)
    }

    /// A client of one member.
    pub async fn client(&self, member: usize) -> Result<Client, ClusterError> {
        let connected = connect(self.servers[member].client_addr()).await;
        connected.map_err(|problem| self.asking(member, "connect", &problem))
    }

    /// What a member says of itself, unless it is out of reach.
    pub async fn status(&self, member: usize) -> Option<StatusResponse> {
        let ask = async {
            let mut client = self.client(member).await.ok()?;
            Some(client.maintenance.status(StatusRequest {}).await.ok()?.into_inner())
        };
        if !self.servers[member].is_started() {
            return None;
        }
        timeout(ANSWER_WITHIN, ask).await.ok()?
    }

    /// The member that leads: of those that say so, the one with the highest term.
    pub async fn leader(&self) -> Option<usize> {
        let mut leader = None;
        for member in 0..self.len() {
            if let Some(status) = self.status(member).await
                && status.header.as_ref().is_some_and(|header| header.member_id == status.leader)
            {
                leader = leader.max(Some((status.raft_term, member)));
            }
        }
        leader.map(|(_, member)| member)
    }

    /// Waits until one of `among` leads.
    pub async fn wait_for_leader(&self, among: &[usize]) -> Result<usize, ClusterError> {
        let mut last = None;
        self.wait("leader", async || {
            last = self.leader().await;
            last.filter(|leader| among.contains(leader)).ok_or_else(|| format!("leader {last:?}"))
        })
        .await
    }

    /// Hands the leadership over, and waits until that has happened.
    pub async fn move_leader(&self, to: usize) -> Result<(), ClusterError> {
        let target = self.member_id(to).await?;
        self.wait("leadership moved", async || {
            let leader = self.leader().await.ok_or_else(|| "no leader".to_owned())?;
            if leader == to {
                return Ok(());
            }
            let mut client = self.client(leader).await.map_err(|problem| problem.to_string())?;
            let moved = client.maintenance.move_leader(MoveLeaderRequest { target_id: target }).await;
            Err(format!("member {leader} leads; asked to move: {moved:?}"))
        })
        .await
    }

    /// The ID that the cluster has given to a member.
    pub async fn member_id(&self, member: usize) -> Result<u64, ClusterError> {
        let status = self.wait("status", async || self.status(member).await.ok_or_else(String::new)).await?;
        Ok(status.header.unwrap_or_default().member_id)
    }

    /// The members as the given one knows them, in the order of their names.
    pub async fn member_list(&self, asked: usize) -> Result<Vec<Member>, ClusterError> {
        let mut client = self.client(asked).await?;
        let listed = client.cluster.member_list(MemberListRequest { linearizable: true }).await;
        let mut members =
            listed.map_err(|status| self.asking(asked, "list the members", &status))?.into_inner().members;
        members.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(members)
    }

    /// Adds a member through another one and starts it on an empty directory, without waiting. Only on 127.0.0.1.
    ///
    /// A cluster refuses while it thinks that it is not healthy, which etcd does for the first five seconds after any
    /// member has come; so it is asked until it agrees.
    pub async fn add(&mut self, binary: &Binary, asked: usize, is_learner: bool) -> Result<usize, ClusterError> {
        let mut seat = self.seat(self.len())?;
        let peer_ur_ls = vec![format!("http://{}", seat.peer)];
        let added = self
            .while_unhealthy(asked, async |mut client: Client| {
                let request = MemberAddRequest { peer_ur_ls: peer_ur_ls.clone(), is_learner };
                client.cluster.member_add(request).await.map(tonic::Response::into_inner)
            })
            .await?;
        let own = added.member.unwrap_or_default().id;
        let named = |member: &Member| {
            let name = if member.id == own { &seat.name } else { &member.name };
            member.peer_ur_ls.iter().map(|url| format!("{name}={url}")).collect::<Vec<_>>().join(",")
        };
        seat.initial_cluster = added.members.iter().map(named).collect::<Vec<_>>().join(",");
        let mut flags = self.setup.flags.clone();
        flags.extend(["--initial-cluster-state".into(), "existing".into()]);
        let options = self.options(flags, seat);
        self.servers.push(Server::spawned(binary, options)?);
        Ok(self.len() - 1)
    }

    /// Asks a member until it no longer answers that the cluster is unhealthy.
    pub async fn while_unhealthy<T>(
        &self,
        asked: usize,
        mut request: impl AsyncFnMut(Client) -> Result<T, Status>,
    ) -> Result<T, ClusterError> {
        let deadline = Instant::now() + AGREED_WITHIN;
        loop {
            let client = self.client(asked).await?;
            match request(client).await {
                Err(status) if status.code() == Code::Unavailable && Instant::now() < deadline => {
                    sleep(LOOK_AGAIN).await
                }
                outcome => return outcome.map_err(|status| self.asking(asked, "change the membership", &status)),
            }
        }
    }

    /// Every started member's hash over the history up to `revision`.
    pub async fn hash_kv_all(&self, revision: i64) -> Result<Vec<HashKvResponse>, ClusterError> {
        let mut hashes = Vec::new();
        for member in self.started() {
            let mut client = self.client(member).await?;
            let hash = client.maintenance.hash_kv(HashKvRequest { revision }).await;
            hashes.push(hash.map_err(|status| self.asking(member, "hash", &status))?.into_inner());
        }
        Ok(hashes)
    }

    /// Waits until every started member has applied everything, and checks that all have the same history. Returns the
    /// revision at which they are equal.
    pub async fn must_be_equal(&self) -> Result<i64, ClusterError> {
        let mut newest = 0;
        for member in self.started() {
            let read = self.wait("linearizable read", async || self.revision(member, false).await);
            newest = newest.max(read.await?);
        }
        for member in self.started() {
            self.wait("caught up member", async || match self.revision(member, true).await? {
                revision if revision >= newest => Ok(()),
                revision => Err(format!("member {member} at revision {revision} of {newest}")),
            })
            .await?;
        }
        self.must_be_equal_at(newest).await.map(|()| newest)
    }

    /// Checks that every started member has the same history up to `revision`.
    pub async fn must_be_equal_at(&self, revision: i64) -> Result<(), ClusterError> {
        // A compaction is agreed on by all and done by each in its own time.
        let hashes = self
            .wait("equal compaction", async || {
                let hashes = self.hash_kv_all(revision).await.map_err(|problem| problem.to_string())?;
                let compacted = |hash: &HashKvResponse| hash.compact_revision;
                match hashes.iter().all(|hash| compacted(hash) == compacted(&hashes[0])) {
                    true => Ok(hashes),
                    false => Err(format!("{hashes:?}")),
                }
            })
            .await?;
        match hashes.iter().all(|hash| hash.hash == hashes[0].hash) {
            true => Ok(()),
            false => Err(ClusterError::Differ { revision, hashes: format!("{hashes:?}") }),
        }
    }

    /// Copies every member's log into a folder, for whoever looks into a failure.
    pub fn keep_logs(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let mut servers = self.servers.iter();
        servers.try_for_each(|server| std::fs::write(folder.join(format!("{}.log", server.name())), server.log()))
    }

    /// The members whose processes were started and not stopped.
    pub fn started(&self) -> Vec<usize> {
        (0..self.len()).filter(|member| self.servers[*member].is_started()).collect()
    }

    /// Tries until it works, with a bound on every try.
    async fn wait<T>(
        &self,
        what: &'static str,
        mut attempt: impl AsyncFnMut() -> Result<T, String>,
    ) -> Result<T, ClusterError> {
        let deadline = Instant::now() + AGREED_WITHIN;
        loop {
            let seen = match timeout(ANSWER_WITHIN * 4, attempt()).await {
                Ok(Ok(outcome)) => return Ok(outcome),
                Ok(Err(seen)) => seen,
                Err(_) => "no answer".to_owned(),
            };
            if Instant::now() > deadline {
                return Err(ClusterError::TimedOut { what, within: AGREED_WITHIN, seen });
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    async fn revision(&self, member: usize, serializable: bool) -> Result<i64, String> {
        let mut client = self.client(member).await.map_err(|problem| problem.to_string())?;
        let request = RangeRequest { key: Bytes::from_static(b"revision"), serializable, ..RangeRequest::default() };
        let answer = client.kv.range(request).await.map_err(|status| status.to_string())?;
        Ok(answer.into_inner().header.unwrap_or_default().revision)
    }

    /// A place for the `member`-th member, without the others' names.
    fn seat(&self, member: usize) -> Result<Seat, ClusterError> {
        let name = format!("node{}", member + 1);
        let (client, peer, namespace) = match &self.network {
            Some(network) => {
                let [client, peer] = [2379, 2380].map(|port| network.address(member, port));
                (client, peer, Some(network.namespace(member)))
            }
            None => {
                let found = free_addresses().map_err(|source| ProcessError::Io {
                    binary: name.clone(),
                    action: "find free ports",
                    source,
                });
                let [client, peer] = found?;
                (client, peer, None)
            }
        };
        Ok(Seat { name, client, peer, namespace, initial_cluster: String::new() })
    }

    fn asking(&self, member: usize, what: &'static str, answer: &dyn std::fmt::Display) -> ClusterError {
        let member = format!("{} ({})", self.servers[member].name(), self.servers[member].binary().name);
        ClusterError::Asking { member, what, answer: answer.to_string() }
    }
}
