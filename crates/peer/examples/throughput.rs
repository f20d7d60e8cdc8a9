//! How many appends two transports pass over loopback, and what CPU time one takes (sender and receiver together).
//!
//! ```text
//! cargo run --release -p keelson-peer --example throughput [entry bytes]
//! ```
//!
//! One line per number of appends that are sent at once before an acknowledgement of the last one is awaited.

use std::io::Read;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use peer::{
    BoxFuture, Config, HashError, HashKv, LeaseError, Local, PromoteError, RemainingLease, StepError, Transport,
};
use proto::raftpb::{Entry, Message, MessageType};

/// Counts what arrives; the follower acknowledges each append.
#[derive(Default)]
struct Counter {
    received: Mutex<u64>,
    changed: Condvar,
    acknowledge: std::sync::OnceLock<Transport>,
}

impl Counter {
    fn wait_for(&self, count: u64) {
        let mut received = self.received.lock();
        self.changed.wait_while(&mut received, |received| *received < count);
    }
}

impl Local for Counter {
    fn step(&self, message: Message) -> Result<(), StepError> {
        self.step_all(&mut vec![message]);
        Ok(())
    }
    fn step_all(&self, messages: &mut Vec<Message>) {
        if let Some(transport) = self.acknowledge.get() {
            let acknowledgements = messages.iter().map(|message| Message {
                r#type: Some(MessageType::MsgAppResp as i32),
                from: message.to,
                to: message.from,
                term: message.term,
                index: message.index,
                ..Message::default()
            });
            transport.send(acknowledgements.collect());
        }
        *self.received.lock() += messages.len() as u64;
        self.changed.notify_one();
        messages.clear();
    }
    fn report_unreachable(&self, _id: u64) {}
    fn report_snapshot(&self, _id: u64, _delivered: bool) {}
    fn peer_gone(&self, _id: u64) {}
    fn removed(&self, _by: u64) {}
    fn is_removed(&self, _id: u64) -> bool {
        false
    }
    fn members(&self) -> Vec<u8> {
        Vec::new()
    }
    fn version(&self) -> Vec<u8> {
        Vec::new()
    }
    fn save_snapshot(&self, _message: &Message, _body: &mut dyn Read) -> Result<(), String> {
        Err("none here".into())
    }
    fn renew_lease(&self, _id: i64) -> BoxFuture<Result<i64, LeaseError>> {
        Box::pin(async { Err(LeaseError::NotFound) })
    }
    fn remaining_lease(&self, _id: i64, _keys: bool) -> BoxFuture<Result<RemainingLease, LeaseError>> {
        Box::pin(async { Err(LeaseError::NotFound) })
    }
    fn promote(&self, _id: u64) -> BoxFuture<Result<Vec<u8>, PromoteError>> {
        Box::pin(async { Err(PromoteError::NotFound) })
    }
    fn v2_digest(&self, _: u64) -> BoxFuture<Option<u64>> {
        Box::pin(std::future::ready(None))
    }

    fn hash_kv(&self, _revision: i64) -> BoxFuture<Result<HashKv, HashError>> {
        Box::pin(async { Err(HashError::Future) })
    }
    fn downgrade_enabled(&self) -> BoxFuture<Result<bool, String>> {
        Box::pin(async { Ok(false) })
    }
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn main() -> std::io::Result<()> {
    let entry_bytes: usize = std::env::args().nth(1).and_then(|bytes| bytes.parse().ok()).unwrap_or(256);
    let start = |id, local: Arc<Counter>| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}", listener.local_addr()?);
        let transport = Transport::start(Config::new(1, id, vec![url.clone()], "3.7.1"), vec![listener.into()], local)?;
        std::io::Result::Ok((transport, url))
    };
    let (leader, follower) = (Arc::new(Counter::default()), Arc::new(Counter::default()));
    let (sender, sender_url) = start(1, leader.clone())?;
    let (receiver, receiver_url) = start(2, follower.clone())?;
    let _ = follower.acknowledge.set(receiver.clone());
    sender.add_peer(2, vec![receiver_url]);
    receiver.add_peer(1, vec![sender_url]);
    while sender.open_streams(2) < 2 || receiver.open_streams(1) < 2 {
        std::thread::sleep(Duration::from_millis(1));
    }

    let data = Bytes::from(vec![7; entry_bytes]);
    let (mut index, mut acknowledged) = (1, 0);
    println!("{entry_bytes} bytes an entry");
    for burst in [1u64, 4, 16, 64, 256] {
        let rounds = (200_000 / burst).min(20_000);
        let (begun, cpu) = (Instant::now(), cpu_time());
        for _ in 0..rounds {
            let messages = (0..burst).map(|_| {
                let entry = Entry { term: Some(2), index: Some(index + 1), r#type: None, data: Some(data.clone()) };
                let message = Message {
                    r#type: Some(MessageType::MsgApp as i32),
                    from: Some(1),
                    to: Some(2),
                    term: Some(2),
                    log_term: Some(2),
                    index: Some(index),
                    commit: Some(index),
                    entries: vec![entry],
                    ..Message::default()
                };
                index += 1;
                message
            });
            sender.send(messages.collect());
            acknowledged += burst;
            leader.wait_for(acknowledged);
        }
        let (took, cpu) = (begun.elapsed(), cpu_time() - cpu);
        let count = (rounds * burst) as f64;
        println!(
            "burst {burst:>4}: {:>9.0} appends/s, {:>6.2} us CPU per append and acknowledgement, {:>7.1} us per round",
            count / took.as_secs_f64(),
            cpu.as_secs_f64() * 1e6 / count,
            took.as_secs_f64() * 1e6 / rounds as f64,
        );
    }
    sender.stop();
    receiver.stop();
    Ok(())
}
