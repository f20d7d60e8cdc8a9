//! What is looked at between a checked configuration and a running member.

use super::Config;
use super::url::texts;
use crate::logging::took;
use std::time::Duration;

/// Something that can be configured but that this version of the server cannot do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not supported by this version of the server")]
pub struct Unsupported(pub String);

impl Config {
    /// Whether the member has lived before: then its log says who it is, and the initial cluster does not matter.
    pub fn is_initialized(&self) -> bool {
        let Ok(entries) = std::fs::read_dir(self.wal_dir()) else { return false };
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with(".wal"))
    }

    /// Logs the settings that matter when somebody asks what a member ran with.
    pub fn log_start(&self) {
        let dir = self.data_dir.display();
        if self.is_initialized() {
            tracing::info!("data-dir" = %dir, "dir-type" = "member", "server has already been initialized");
        } else {
            tracing::info!("data-dir" = %dir, "Initialize and start etcd server");
        }
        tracing::info!(
            "etcd-version" = crate::ETCD_VERSION,
            "keelson-version" = env!("CARGO_PKG_VERSION"),
            "go-os" = std::env::consts::OS,
            "go-arch" = super::architecture(),
            "max-cpu-available" = std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            "member-initialized" = self.is_initialized(),
            name = self.name.as_str(),
            "data-dir" = %dir,
            "wal-dir" = %self.wal_dir().display(),
            "member-dir" = %self.member_dir().display(),
            "force-new-cluster" = self.force_new_cluster,
            "heartbeat-interval" = %took(Duration::from_millis(self.heartbeat_ms)),
            "election-timeout" = %took(Duration::from_millis(self.election_ms)),
            "initial-election-tick-advance" = self.initial_election_tick_advance,
            "snapshot-count" = self.snapshot_count,
            "max-wals" = self.max_wals,
            "max-snapshots" = self.max_snapshots,
            "snapshot-catchup-entries" = self.snapshot_catchup_entries,
            "initial-advertise-peer-urls" = ?texts(&self.advertise_peer_urls),
            "listen-peer-urls" = ?texts(&self.listen_peer_urls),
            "advertise-client-urls" = ?texts(&self.advertise_client_urls),
            "listen-client-urls" = ?texts(&self.listen_client_urls),
            "listen-metrics-urls" = ?texts(&self.listen_metrics_urls),
            cors = ?self.cors,
            "host-whitelist" = ?self.host_whitelist,
            "initial-cluster" = self.initial_cluster.as_str(),
            "initial-cluster-token" = self.initial_cluster_token.as_str(),
            "quota-backend-bytes" = self.quota_bytes().unwrap_or(0),
            "max-request-bytes" = self.max_request_bytes,
            "max-concurrent-streams" = self.max_concurrent_streams,
            "starting an etcd server"
        );
    }

    /// Refuses what can be typed but not done yet: to run without it would surprise, or give data away.
    pub fn check_supported(&self) -> Result<(), Unsupported> {
        let refuse = |what: String| Err(Unsupported(what));
        let discovery = &self.discovery;
        if !discovery.cert_file.is_empty() || !discovery.ca_file.is_empty() {
            return refuse("TLS towards the discovery service (--discovery-cert, --discovery-cacert)".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Discovery;
    use super::*;

    fn config() -> Config {
        Config { data_dir: "/nonexistent/etcd".into(), ..Config::default() }
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let discovery = Discovery { ca_file: "ca.pem".into(), ..Discovery::default() };
        let refused = Config { discovery, ..config() }.check_supported().unwrap_err();
        assert_eq!(
            refused.to_string(),
            "TLS towards the discovery service (--discovery-cert, --discovery-cacert) is not supported by this version of the server"
        );
        assert_eq!(config().check_supported(), Ok(()));
    }

    #[test]
    fn a_member_that_has_lived_before_needs_no_initial_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let wal = dir.path().join("member/wal");
        std::fs::create_dir_all(&wal).unwrap();
        let config = Config {
            data_dir: dir.path().into(),
            name: "other".into(),
            initial_cluster: "x=http://h:1".into(),
            ..config()
        };
        assert!(config.initial_members().is_err());
        std::fs::write(wal.join("0000000000000000-0000000000000000.wal"), "").unwrap();
        assert_eq!(config.initial_members().unwrap().len(), 1);
    }
}
