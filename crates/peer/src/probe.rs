//! Asks each peer now and then whether it is there, how long that takes, and what time it is.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::{HOST, HeaderValue};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::SendRequest;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, interval_at, timeout};

use crate::headers::answer;
use crate::hub::{Hub, Peer, hex};
use crate::io::{Wire, handshake};
use crate::outlet::Body;

/// How often, as in etcd.
const INTERVAL: Duration = Duration::from_secs(4);
/// How long an answer may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Clocks that differ by more are worth a warning.
const MAX_CLOCK_DRIFT: Duration = Duration::from_secs(1);
/// What an answer may be long.
const MAX_BODY_BYTES: usize = 4 << 10;

#[derive(Debug, Deserialize, Serialize)]
struct Health {
    #[serde(rename = "OK")]
    ok: bool,
    #[serde(rename = "Now")]
    now: String,
}

/// Answers a peer's probe.
pub(crate) fn respond() -> http::Response<Body> {
    let now = OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default();
    let body = serde_json::to_string(&Health { ok: true, now }).unwrap_or_default();
    answer("text/plain; charset=utf-8", body + "\n")
}

/// Probes a peer for as long as it is one.
pub(crate) async fn run(hub: Rc<Hub>, peer: Rc<Peer>) {
    let mut ticks = interval_at(Instant::now() + INTERVAL, INTERVAL);
    let mut kept = None;
    let mut was_healthy = true;
    loop {
        ticks.tick().await;
        let outcome = timeout(TIMEOUT, probe(&hub, &peer, &mut kept)).await.unwrap_or_else(|_| Err("no answer".into()));
        if let Err(error) = &outcome {
            kept = None;
            if was_healthy {
                tracing::warn!("remote-peer-id" = %hex(peer.id), %error, "prober detected unhealthy status");
            }
        }
        was_healthy = outcome.is_ok();
    }
}

async fn probe(
    hub: &Hub,
    peer: &Peer,
    kept: &mut Option<SendRequest<Empty<Bytes>>>,
) -> Result<(), Box<dyn std::error::Error>> {
    let url = peer.picker.pick().ok_or("no usable URL")?;
    let mut sender = match kept.take() {
        Some(sender) if !sender.is_closed() => sender,
        _ => {
            let (sender, connection) =
                handshake(Wire::connect(&hub.config.dialer, &url, hub.config.dial_timeout).await?).await?;
            tokio::task::spawn_local(async move {
                // How it ends is seen by whoever uses it.
                let _ = connection.await;
            });
            sender
        }
    };
    sender.ready().await?;
    let begun = Instant::now();
    let mut request = Request::new(Empty::new());
    *request.uri_mut() = http::Uri::from_static("/raft/probing");
    request.headers_mut().insert(HOST, HeaderValue::try_from(&url.authority)?);
    let response = sender.send_request(request).await?;
    let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await.map_err(|error| error.to_string())?;
    let took = begun.elapsed();
    let health: Health = serde_json::from_slice(&body.to_bytes())?;
    if !health.ok {
        return Err("the peer says that it is not well".into());
    }
    peer.status.set_round_trip(took);
    hub.local.round_trip(peer.id, took);
    let drift = (OffsetDateTime::now_utc() - OffsetDateTime::parse(&health.now, &Rfc3339)?).unsigned_abs();
    if drift > MAX_CLOCK_DRIFT {
        tracing::warn!("remote-peer-id" = %hex(peer.id), "clock-drift" = ?drift, rtt = ?took, "prober found high clock drift");
    }
    *kept = Some(sender);
    Ok(())
}
