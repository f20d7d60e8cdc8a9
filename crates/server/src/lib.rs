//! One member, joined together: configuration, bootstrap, the threads and the queues between them, the listeners.

pub mod config;
pub mod logging;

/// The etcd that this server matches on the wire: kube-apiserver and others switch features on by it.
pub const ETCD_VERSION: &str = "3.7.1";
