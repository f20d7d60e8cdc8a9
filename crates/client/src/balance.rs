//! Which endpoint a call goes to.

use crate::{Config, Endpoint, Error, Tls};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tls::Connector;
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// How long an attempt to connect goes on alone before the next endpoint is tried beside it.
const HEAD_START: Duration = Duration::from_millis(200);
/// An endpoint that could not be reached is left out for so long while others can be.
const SHUN: Duration = Duration::from_secs(1);

/// The connections of a client: one per endpoint, made when first needed.
///
/// Calls go round the endpoints in turn, beginning at a random one so that many short-lived clients spread. An endpoint
/// that fails costs nothing while another one answers.
pub(crate) struct Pool {
    slots: Vec<Arc<Slot>>,
    turn: AtomicUsize,
    config: Arc<Config>,
    connector: Option<Arc<Connector>>,
}

struct Slot {
    endpoint: Endpoint,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    channel: Option<Channel>,
    failed_at: Option<Instant>,
}

/// A connection to use, and whose it is.
pub(crate) struct Picked {
    pub channel: Channel,
    slot: Arc<Slot>,
}

impl Picked {
    /// The endpoint's name.
    pub fn endpoint(&self) -> &str {
        self.slot.endpoint.as_str()
    }

    /// Gives the connection up: the next pick goes elsewhere, or connects again.
    pub fn give_up(&self) {
        self.slot.set(State { channel: None, failed_at: Some(Instant::now()) });
    }
}

impl Slot {
    fn channel(&self) -> Option<Channel> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).channel.clone()
    }

    fn is_shunned(&self) -> bool {
        let failed_at = self.state.lock().unwrap_or_else(PoisonError::into_inner).failed_at;
        failed_at.is_some_and(|at| at.elapsed() < SHUN)
    }

    fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    async fn connect(&self, config: &Config, connector: Option<Arc<Connector>>) -> Result<Channel, String> {
        match self.endpoint.connect(config, connector).await {
            Ok(channel) => {
                self.set(State { channel: Some(channel.clone()), failed_at: None });
                Ok(channel)
            }
            Err(reason) => {
                self.set(State { channel: None, failed_at: Some(Instant::now()) });
                Err(reason)
            }
        }
    }
}

fn connector(tls: Option<&Tls>) -> Result<Connector, Error> {
    let Tls { cacert, cert, key, insecure_skip_verify, server_name } = tls.cloned().unwrap_or_default();
    let settings = tls::Settings {
        trusted_ca_file: cacert,
        cert_file: cert,
        key_file: key,
        insecure_skip_verify,
        server_name,
        ..tls::Settings::default()
    };
    Connector::new(&settings, &["h2"]).map_err(|error| Error::Tls(error.to_string()))
}

impl Pool {
    pub fn new(config: Arc<Config>) -> Result<Self, Error> {
        let slot = |text: &String| Arc::new(Slot { endpoint: Endpoint::parse(text), state: Mutex::default() });
        let slots: Vec<_> = config.endpoints.iter().map(slot).collect();
        // Files that are named have to be there, whether an endpoint needs them or not.
        let is_needed = config.tls.is_some() || slots.iter().any(|slot| slot.endpoint.demands_tls());
        let connector = if is_needed { Some(Arc::new(connector(config.tls.as_ref())?)) } else { None };
        // A fresh RandomState is the standard library's only source of randomness.
        let start = RandomState::new().build_hasher().finish() as usize % slots.len().max(1);
        Ok(Pool { slots, turn: AtomicUsize::new(start), config, connector })
    }

    /// A connection to whichever endpoint is next and answers, or why the last of them did not. Trouble is only told when
    /// no endpoint answers: a call that another member takes over is not worth a word.
    pub async fn pick(&self) -> Result<Picked, String> {
        let mut waiting = self.in_turn().into_iter().peekable();
        let mut attempts = JoinSet::new();
        let mut failures: Vec<(String, String)> = Vec::new();
        loop {
            if let Some(slot) = waiting.next() {
                if let Some(channel) = slot.channel() {
                    return Ok(Picked { channel, slot });
                }
                let (config, connector) = (self.config.clone(), self.connector.clone());
                attempts.spawn(async move {
                    match slot.connect(&config, connector).await {
                        Ok(channel) => Ok(Picked { channel, slot }),
                        Err(reason) => Err((slot.endpoint.as_str().to_owned(), reason)),
                    }
                });
            }
            tokio::select! {
                attempt = attempts.join_next() => match attempt {
                    Some(Ok(Ok(picked))) => return Ok(picked),
                    Some(Ok(Err(failure))) => failures.push(failure),
                    Some(Err(error)) => failures.push((String::new(), error.to_string())),
                    None if waiting.peek().is_none() => return Err(self.tell(&failures)),
                    None => {}
                },
                () = tokio::time::sleep(HEAD_START), if waiting.peek().is_some() => {}
            }
        }
    }

    /// Tells of every endpoint that failed, and gives the last failure.
    fn tell(&self, failures: &[(String, String)]) -> String {
        if let Some(tell) = &self.config.on_trouble {
            failures.iter().for_each(|(endpoint, reason)| tell(endpoint, reason));
        }
        failures.last().map(|(endpoint, reason)| format!("{endpoint}: {reason}")).unwrap_or_default()
    }

    /// The endpoints, beginning with whose turn it is; those that failed a moment ago last.
    fn in_turn(&self) -> Vec<Arc<Slot>> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.slots.len().max(1);
        let mut slots = self.slots.clone();
        slots.rotate_left(turn);
        slots.sort_by_key(|slot| slot.is_shunned());
        slots
    }
}
