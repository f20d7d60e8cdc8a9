//! A network of its own for a cluster: every member in a network namespace, joined by a bridge, with links that can be
//! cut in one direction, slowed down, or made lossy.
//!
//! A cut is silent, as on a broken switch: the sender's neighbour table names a hardware address that nobody has, so
//! packets leave and never arrive. That needs no packet filter, only `ip`.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Where `ip netns` keeps its namespaces.
const NAMESPACES: &str = "/var/run/netns";
/// What all of our namespaces begin with.
const PREFIX: &str = "keelson-";
/// A hardware address that nobody has.
const NOBODY: &str = "02:00:00:00:ff:ff";

/// Why a network could not be made or changed.
#[derive(Debug, thiserror::Error)]
#[error("{command}: {problem}")]
pub struct NetworkError {
    /// What was run.
    pub command: String,
    /// What came back.
    pub problem: String,
}

/// One namespace per member and one with the bridge, in which the clients live. Dropping it removes all of them.
#[derive(Debug)]
pub struct Network {
    /// What the namespaces of this network begin with.
    name: String,
    members: usize,
    /// Whether the kernel can delay and lose packets by itself.
    has_netem: bool,
}

impl Network {
    /// Why there can be none here, or `Ok`: it takes root and the programs `ip` and `tc`.
    pub fn available() -> Result<(), String> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".into());
        }
        for program in ["ip", "tc"] {
            if Command::new(program).arg("-V").output().is_err() {
                return Err(format!("network namespaces need the program {program}"));
            }
        }
        Ok(())
    }

    /// Makes the namespaces; member `i` gets the address 192.168.99.(100 + i).
    pub fn create(members: usize) -> Result<Network, NetworkError> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        remove_abandoned();
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{serial}", std::process::id());
        let mut network = Network { name, members, has_netem: false };
        let hub = network.hub();
        run("ip", &["netns", "add", &hub])?;
        run("ip", &["-n", &hub, "link", "set", "lo", "up"])?;
        run("ip", &["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
        run("ip", &["-n", &hub, "addr", "add", "192.168.99.1/24", "dev", "bridge"])?;
        run("ip", &["-n", &hub, "link", "set", "bridge", "up"])?;
        for member in 0..members {
            let (namespace, port, mac) = (network.namespace(member), port(member), mac(member));
            run("ip", &["netns", "add", &namespace])?;
            let link = ["-n", &hub, "link", "add", &port, "type", "veth", "peer", "name", "eth0"];
            run("ip", &[&link[..], &["address", &mac, "netns", &namespace]].concat())?;
            run("ip", &["-n", &hub, "link", "set", &port, "master", "bridge", "up"])?;
            run("ip", &["-n", &namespace, "link", "set", "lo", "up"])?;
            let address = format!("{}/24", address(member));
            run("ip", &["-n", &namespace, "addr", "add", &address, "dev", "eth0"])?;
            run("ip", &["-n", &namespace, "link", "set", "eth0", "up"])?;
        }
        network.heal()?;
        let netem = run("tc", &["-n", &hub, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"]);
        network.has_netem = netem.is_ok();
        if network.has_netem {
            run("tc", &["-n", &hub, "qdisc", "del", "dev", "lo", "root"])?;
        }
        Ok(network)
    }

    /// Moves the calling thread beside the bridge, where every member can be reached; threads and sockets that it makes
    /// from now on are there as well. It stays there for good.
    pub fn enter(&self) -> Result<(), NetworkError> {
        let path = Path::new(NAMESPACES).join(self.hub());
        let error = |problem: String| NetworkError { command: format!("enter {}", path.display()), problem };
        let namespace = File::open(&path).map_err(|problem| error(problem.to_string()))?;
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), Some(LinkNameSpaceType::Network))
            .map_err(|problem| error(problem.to_string()))
    }

    /// The namespace of a member.
    pub fn namespace(&self, member: usize) -> String {
        format!("{}-{member}", self.name)
    }

    /// An address of a member.
    pub fn address(&self, member: usize, port: u16) -> SocketAddr {
        SocketAddr::from((address(member), port))
    }

    /// From now on nothing that `from` sends reaches `to`.
    pub fn cut(&self, from: usize, to: usize) -> Result<(), NetworkError> {
        self.neighbour(from, to, NOBODY)
    }

    /// From now on neither of two members hears the other.
    pub fn cut_both(&self, one: usize, other: usize) -> Result<(), NetworkError> {
        self.cut(one, other).and_then(|()| self.cut(other, one))
    }

    /// Makes the link of a member slow: 50 ms more in each direction, or, where the kernel cannot delay, 1 Mbit/s.
    pub fn slow(&self, member: usize) -> Result<(), NetworkError> {
        match self.has_netem {
            true => self.shape(member, &["netem", "delay", "50ms", "10ms"]),
            false => self.shape(member, &["tbf", "rate", "1mbit", "burst", "4kb", "latency", "400ms"]),
        }
    }

    /// Makes the link of a member lose packets: one of ten in each direction, or, where the kernel cannot, whatever
    /// does not fit into a queue of three packets.
    pub fn lose(&self, member: usize) -> Result<(), NetworkError> {
        match self.has_netem {
            true => self.shape(member, &["netem", "loss", "10%"]),
            false => self.shape(member, &["tbf", "rate", "10mbit", "burst", "2kb", "latency", "2ms"]),
        }
    }

    /// Every link is whole and fast again.
    pub fn heal(&self) -> Result<(), NetworkError> {
        for from in 0..self.members {
            for to in (0..self.members).filter(|to| *to != from) {
                self.neighbour(from, to, &mac(to))?;
            }
            // Fails where nothing was shaped.
            for (namespace, device) in self.both_ends(from) {
                run("tc", &["-n", &namespace, "qdisc", "del", "dev", &device, "root"]).ok();
            }
        }
        Ok(())
    }

    fn neighbour(&self, from: usize, to: usize, mac: &str) -> Result<(), NetworkError> {
        let (namespace, address) = (self.namespace(from), address(to).to_string());
        let entry = ["neigh", "replace", &address, "lladdr", mac, "dev", "eth0", "nud", "permanent"];
        run("ip", &[&["-n", &namespace], &entry[..]].concat())
    }

    fn shape(&self, member: usize, queue: &[&str]) -> Result<(), NetworkError> {
        for (namespace, device) in self.both_ends(member) {
            run("tc", &[&["-n", &namespace, "qdisc", "replace", "dev", &device, "root"], queue].concat())?;
        }
        Ok(())
    }

    /// The two devices of a member's link: what it sends leaves through one, what it gets through the other.
    fn both_ends(&self, member: usize) -> [(String, String); 2] {
        [(self.namespace(member), "eth0".to_owned()), (self.hub(), port(member))]
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let members = (0..self.members).map(|member| self.namespace(member));
        for namespace in members.chain([self.hub()]) {
            // One that was never made, or is gone already, is as good as removed.
            run("ip", &["netns", "del", &namespace]).ok();
        }
    }
}

/// Removes the namespaces of processes that did not live to do it themselves.
fn remove_abandoned() {
    let Ok(entries) = std::fs::read_dir(NAMESPACES) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|owner| !PathBuf::from(format!("/proc/{owner}")).exists()) {
            run("ip", &["netns", "del", &name]).ok();
        }
    }
}

fn address(member: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 99, 100 + member as u8)
}

fn mac(member: usize) -> String {
    format!("02:00:00:00:00:{member:02x}")
}

/// The bridge's end of a member's link.
fn port(member: usize) -> String {
    format!("member{member}")
}

fn run(program: &str, arguments: &[&str]) -> Result<(), NetworkError> {
    let error = |problem: String| NetworkError { command: format!("{program} {}", arguments.join(" ")), problem };
    let output = Command::new(program).args(arguments).output().map_err(|problem| error(problem.to_string()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(error(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}
