//! Clusters of drivers on a network and disks in memory.
//!
//! Nothing here waits or depends on chance: time is ticks, order is the test's or a seed's. `net` holds the cluster and checks
//! what must always be true; the other modules each make a row of promises.

mod elections;
mod hostile;
mod membership;
mod net;
mod random;
mod reads;
mod replication;
mod wire;
