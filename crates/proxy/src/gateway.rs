//! `etcd gateway start`: passes TCP connections on to whichever member takes them.
//!
//! An endpoint that cannot be reached is left alone for `--retry-delay`. Of the others those with the lowest priority are
//! used in turn, or by their weights where SRV records give some; what was given on the command line is all the same.

use crate::Ready;
use cli::flags::{self, Flag, Kind, Parsed, switch, text};
use cli::{Command, Failure, exit, go};
use rand::Rng as _;
use std::cell::RefCell;
use std::convert::Infallible;
use std::net::ToSocketAddrs as _;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// The command.
pub const GATEWAY: Command<Parsed> =
    Command { name: "gateway", about: "gateway related command", commands: &[START], ..Command::NONE };

const START: Command<Parsed> = Command {
    name: "start",
    about: "start the gateway",
    example: "etcd gateway start --endpoints 10.0.0.1:2379,10.0.0.2:2379 --listen-addr 127.0.0.1:23790",
    flags: &[
        Flag {
            name: "endpoints",
            short: None,
            kind: Kind::List,
            default: "127.0.0.1:2379",
            help: "Where the members are, with commas between them.",
        },
        text("listen-addr", "127.0.0.1:23790", "Where to listen."),
        text("discovery-srv", "", "DNS domain whose SRV records name the endpoints."),
        text("discovery-srv-name", "", "Suffix of the service's name in those records."),
        switch("insecure-discovery", "Accept SRV records of endpoints without TLS."),
        text("trusted-ca-file", "", "Accepted; connections are passed on without being looked at."),
        flags::duration("retry-delay", "1m", "How long an endpoint that failed is left alone."),
    ],
    run: Some(|_| Ok(())),
    ..Command::NONE
};

/// How long a connection to an endpoint may take.
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait when no more connections can be taken, for instance because there are no more file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Passes connections on until the process ends.
pub fn run(call: &Parsed, ready: Ready) -> Result<Infallible, Failure> {
    let failed = |text: String| Failure::new(exit::ERROR, text);
    let endpoints = endpoints(call)?;
    let listen = call.text("listen-addr");
    check_addresses(&endpoints, listen)?;
    if endpoints.is_empty() {
        return Err(failed("no endpoints found".into()));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(error.to_string()))?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind(listen).await;
        let listener = listener.map_err(|error| failed(format!("listen tcp {listen}: bind: {error}")))?;
        ready();
        let gateway = Rc::new(Gateway::new(endpoints, call.duration("retry-delay")));
        let addresses: Vec<&str> = gateway.endpoints.iter().map(|endpoint| endpoint.address.as_str()).collect();
        tracing::info!(endpoints = ?addresses, "ready to proxy client requests");
        gateway.serve(listener).await
    })
}

/// A place that connections may go to.
#[derive(Debug, PartialEq, Eq)]
struct Endpoint {
    address: String,
    priority: u16,
    weight: u16,
}

fn endpoints(call: &Parsed) -> Result<Vec<Endpoint>, Failure> {
    let domain = call.text("discovery-srv");
    if !domain.is_empty() {
        let secure_only = !call.is("insecure-discovery");
        let found = srv::client_endpoints(domain, call.text("discovery-srv-name"), secure_only);
        let found = found.map_err(|reason| Failure::new(exit::ERROR, reason))?;
        let endpoint = |found: srv::Endpoint| Endpoint {
            address: found.target.address(),
            priority: found.target.priority,
            weight: found.target.weight,
        };
        return Ok(found.into_iter().map(endpoint).collect());
    }
    let typed = call.list("endpoints").iter().map(|typed| {
        let address = typed.split_once("://").map_or(typed.as_str(), |(_, address)| address).trim();
        if address.rsplit_once(':').is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
            let text = format!("error parsing endpoint {}", go::quote(address.as_bytes()));
            return Err(Failure::new(exit::ERROR, text));
        }
        Ok(Endpoint { address: address.to_owned(), priority: 0, weight: 0 })
    });
    typed.collect()
}

/// A gateway that passes connections on to itself would do so for ever.
fn check_addresses(endpoints: &[Endpoint], listen: &str) -> Result<(), Failure> {
    let failed = |text: String| Err(Failure::new(exit::ERROR, text));
    if listen.rsplit_once(':').is_none() {
        return failed(format!("failed to validate listen address: {listen}"));
    }
    let Ok(own) = listen.to_socket_addrs() else {
        let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host);
        return failed(format!("failed to resolve listen host: {host}"));
    };
    let own: Vec<_> = own.collect();
    for Endpoint { address, .. } in endpoints {
        let Ok(mut theirs) = address.to_socket_addrs() else {
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
            return failed(format!("failed to resolve endpoint host: {host}"));
        };
        if let Some(their) = theirs.find(|their| own.contains(their)) {
            return failed(format!(
                "SRV or endpoint ({address}->{their}) should not resolve to the gateway listen addr ({listen})"
            ));
        }
    }
    Ok(())
}

/// Who passes connections on.
#[derive(Debug)]
struct Gateway {
    endpoints: Vec<Endpoint>,
    turns: RefCell<Turns>,
    retry_delay: Duration,
}

/// Whose turn it is.
#[derive(Debug)]
struct Turns {
    is_active: Vec<bool>,
    count: usize,
}

impl Gateway {
    fn new(endpoints: Vec<Endpoint>, retry_delay: Duration) -> Self {
        let turns = Turns { is_active: vec![true; endpoints.len()], count: 0 };
        Self { endpoints, turns: RefCell::new(turns), retry_delay }
    }

    async fn serve(self: Rc<Self>, listener: TcpListener) -> ! {
        tokio::task::spawn_local(Rc::clone(&self).keep_trying());
        loop {
            match listener.accept().await {
                Ok((client, _)) => drop(tokio::task::spawn_local(Rc::clone(&self).pass_on(client))),
                Err(error) => {
                    tracing::warn!(%error, "cannot take a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn pass_on(self: Rc<Self>, mut client: TcpStream) {
        while let Some(chosen) = self.choose() {
            let address = &self.endpoints[chosen].address;
            match dial(address).await {
                Ok(mut member) => {
                    // Requests are small, and somebody waits for each. Without these two lines they only wait longer.
                    client.set_nodelay(true).ok();
                    member.set_nodelay(true).ok();
                    if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut member).await {
                        tracing::debug!(%error, address, "a connection broke");
                    }
                    return;
                }
                Err(error) => {
                    self.turns.borrow_mut().is_active[chosen] = false;
                    tracing::warn!(address, interval = ?self.retry_delay, %error, "deactivated endpoint");
                }
            }
        }
        // Nobody is there: the client sees its connection closed, and tries again.
    }

    /// The endpoint for the next connection; none if all have failed.
    fn choose(&self) -> Option<usize> {
        let mut turns = self.turns.borrow_mut();
        let active = || self.endpoints.iter().enumerate().filter(|(at, _)| turns.is_active[*at]);
        let best = active().map(|(_, endpoint)| endpoint.priority).min()?;
        let candidates: Vec<usize> =
            active().filter(|(_, endpoint)| endpoint.priority == best).map(|(at, _)| at).collect();
        let weight: u32 = candidates.iter().map(|at| u32::from(self.endpoints[*at].weight)).sum();
        if weight > 0 {
            let mut left = rand::rng().random_range(0..weight);
            for at in &candidates {
                let own = u32::from(self.endpoints[*at].weight);
                if left < own {
                    return Some(*at);
                }
                left -= own;
            }
        }
        let chosen = candidates[turns.count % candidates.len()];
        turns.count = turns.count.wrapping_add(1);
        Some(chosen)
    }

    /// Dials those that failed again, now and then.
    async fn keep_trying(self: Rc<Self>) {
        loop {
            tokio::time::sleep(self.retry_delay.max(Duration::from_millis(1))).await;
            for at in 0..self.endpoints.len() {
                if self.turns.borrow().is_active[at] {
                    continue;
                }
                let address = &self.endpoints[at].address;
                match dial(address).await {
                    Ok(_) => {
                        self.turns.borrow_mut().is_active[at] = true;
                        tracing::info!(address, "activated");
                    }
                    Err(error) => tracing::warn!(
                        address,
                        interval = ?self.retry_delay,
                        %error,
                        "failed to activate endpoint (stay inactive for another interval)"
                    ),
                }
            }
        }
    }
}

async fn dial(address: &str) -> std::io::Result<TcpStream> {
    match tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect(address)).await {
        Ok(dialled) => dialled,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway(endpoints: &[(u16, u16)]) -> Gateway {
        let endpoint = |(at, (priority, weight)): (usize, &(u16, u16))| Endpoint {
            address: format!("127.0.0.1:{at}"),
            priority: *priority,
            weight: *weight,
        };
        Gateway::new(endpoints.iter().enumerate().map(endpoint).collect(), Duration::from_secs(60))
    }

    #[test]
    fn equals_take_turns_and_those_that_failed_are_left_out() {
        let gateway = gateway(&[(0, 0), (0, 0), (0, 0)]);
        let turns: Vec<_> = (0..4).map(|_| gateway.choose().unwrap()).collect();
        assert_eq!(turns, [0, 1, 2, 0]);
        gateway.turns.borrow_mut().is_active[1] = false;
        assert!((0..10).all(|_| gateway.choose() != Some(1)));
        gateway.turns.borrow_mut().is_active.fill(false);
        assert_eq!(gateway.choose(), None);
    }

    #[test]
    fn a_higher_priority_number_is_only_for_when_the_lower_ones_are_gone() {
        let gateway = gateway(&[(1, 0), (0, 0)]);
        assert!((0..10).all(|_| gateway.choose() == Some(1)));
        gateway.turns.borrow_mut().is_active[1] = false;
        assert_eq!(gateway.choose(), Some(0));
    }

    #[test]
    fn weights_are_shares() {
        let gateway = gateway(&[(0, 1), (0, 0), (0, 9)]);
        let count = |at| (0..1_000).filter(|_| gateway.choose() == Some(at)).count();
        assert_eq!(count(1), 0);
        assert!((800..=980).contains(&count(2)));
    }
}
