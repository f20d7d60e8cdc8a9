//! What goes wrong, as troubles want it.

use std::path::PathBuf;

use disk::mem::{Fault, SECTOR_BYTES};
use disk::{Disk, MemDisk};

use super::operator::Wish;
use super::{Cluster, End, Seat, data_dir};
use crate::agenda::{Event, Happening};
use crate::host::Drift;
use crate::network::Weather;

/// How a disk goes bad where nobody writes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rot {
    /// A bit flips.
    Flip,
    /// A sector is overwritten with another one of the file.
    Astray,
    /// A sector cannot be read.
    Unreadable,
}

/// The files of a member that nobody writes to any more, and what they hold: all but the last of the log and of the store.
fn sealed(disk: &MemDisk) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for (dir, suffix) in [("wal", ".wal"), ("store", ".seg"), ("snap", ".snap")] {
        let dir = data_dir().join("member").join(dir);
        let names = disk.list(&dir).unwrap_or_default();
        let mut names: Vec<String> = names.into_iter().filter(|name| name.ends_with(suffix)).collect();
        names.sort_unstable();
        names.pop();
        let whole = names.into_iter().filter_map(|name| Some((dir.join(&name), disk.read(&dir.join(name)).ok()?)));
        files.extend(whole.filter(|(_, bytes)| !bytes.is_empty()));
    }
    files
}

impl Cluster {
    /// How many machines there are, running or not.
    pub fn machines(&self) -> usize {
        self.seats.len()
    }

    /// Plans something.
    pub fn later(&mut self, after_us: u64, event: Event) {
        self.agenda.at(self.now_us + after_us, event);
    }

    /// A line of the story.
    pub fn say(&mut self, line: std::fmt::Arguments<'_>) {
        self.trace.say(self.now_us, line);
    }

    /// Ends a process; its machine starts it again after so long.
    pub fn strike_down(&mut self, at: usize, how: End, back_after_us: u64) {
        self.end(at, how);
        self.later(back_after_us, Event::Restart(at));
    }

    /// For so long something happens to whoever begins to lead.
    pub fn hunt(&mut self, time_us: u64) {
        self.hunted_until_us = self.now_us + time_us;
    }

    /// Something happens to a machine that has just begun to lead, and now and then to another that may have elected it.
    pub(super) fn strike_leader(&mut self, at: usize) {
        if self.is_calm {
            return;
        }
        self.say(format_args!("m{at} is struck because it leads"));
        let back = self.random.around(500_000);
        match self.random.below(3) {
            0 => self.freeze(at, back),
            1 => self.strike_down(at, End::PowerLost, back),
            _ => self.strike_down(at, End::Killed, back),
        }
        if self.random.chance(500) {
            let other = self.any_machine();
            let back = self.random.around(30_000);
            self.strike_down(other, End::Killed, back);
        }
    }

    /// Freezes a process for so long.
    pub fn freeze(&mut self, at: usize, time_us: u64) {
        // Never less than before: what has come meanwhile waits for the first end, and nothing may overtake it.
        let until_us = self.seats[at].frozen_until_us.max(self.now_us + time_us);
        self.seats[at].frozen_until_us = until_us;
        self.connections();
        self.plan(at, until_us - self.now_us, Happening::Thaw);
    }

    /// Has a disk hang for so long.
    pub fn stall(&mut self, at: usize, time_us: u64) {
        self.seats[at].stalled_until_us = self.now_us + time_us;
    }

    /// Makes a machine's clock run wrong from now on, in its later lives too.
    pub fn set_drift(&mut self, at: usize, drift: Drift) {
        let seat = &mut self.seats[at];
        seat.drift = drift;
        if let Some(running) = &seat.running {
            running.machine.advance(self.now_us);
            running.machine.set_drift(drift);
        }
    }

    /// Sets a machine's clock on the wall: so far from the truth.
    pub fn set_wall(&mut self, at: usize, offset_us: i64) {
        self.seats[at].wall_offset_us = offset_us;
        if let Some(running) = &self.seats[at].running {
            running.machine.set_wall(offset_us);
        }
    }

    /// Arms a fault of a machine's disk.
    pub fn inject(&mut self, at: usize, fault: Fault) {
        self.say(format_args!("m{at}'s disk: {fault:?}"));
        self.seats[at].disk.inject(fault);
    }

    /// Takes back the faults of a machine's disk that are still to come, unless it has no power.
    pub fn clear_faults(&self, at: usize) {
        let Seat { disk, unreadable, .. } = &self.seats[at];
        if !disk.is_off() {
            disk.clear_faults();
            // A bad sector stays bad.
            unreadable.iter().for_each(|fault| disk.inject(fault.clone()));
        }
    }

    /// Damages a disk where everything is long safe, if that leaves most disks sound: one disk at a time goes bad, and no
    /// other is given up meanwhile.
    pub fn rot(&mut self, at: usize, rot: Rot) {
        let at = self.rotten.unwrap_or(at);
        let is_member = self.ledger.membership.members().contains_key(&self.seats[at].id);
        if !is_member || self.ledger.membership.voters() < 3 || !self.operator.is_idle() || self.seats[at].disk.is_off()
        {
            return;
        }
        let disk = self.seats[at].disk.clone();
        let Some((path, bytes)) = self.random.pick(&sealed(&disk)).cloned() else { return };
        let offset = self.random.below(bytes.len() as u64);
        self.say(format_args!("m{at}'s disk rots: {rot:?} in {} at {offset} of {}", path.display(), bytes.len()));
        self.rotten = Some(at);
        let from = (offset - offset % SECTOR_BYTES) as usize;
        let sector = &bytes[from..bytes.len().min(from + SECTOR_BYTES as usize)];
        let done = match rot {
            Rot::Flip => disk.damage(&path, offset, &[bytes[offset as usize] ^ (1 << self.random.below(8))]),
            Rot::Astray => {
                let other = self.random.below(bytes.len() as u64);
                disk.damage(&path, other - other % SECTOR_BYTES, sector)
            }
            Rot::Unreadable => {
                let fault = Fault::ReadFails { path, offset };
                self.seats[at].unreadable.push(fault.clone());
                disk.inject(fault);
                Ok(())
            }
        };
        if let Err(error) = done {
            self.say(format_args!("it does not: {error}"));
        }
    }

    /// Whether a machine's disk may fail its member.
    pub(super) fn may_fail(&self, at: usize) -> bool {
        self.settings.disks_fail || self.rotten == Some(at)
    }

    /// Cuts ways, each from one machine to another.
    pub fn cut(&mut self, ways: impl Iterator<Item = (usize, usize)>) {
        for (from, to) in ways {
            self.network.cut(from, to);
        }
        self.connections();
    }

    /// Mends all ways.
    pub fn heal(&mut self) {
        self.network.heal();
        self.connections();
    }

    /// Makes the network better or worse.
    pub fn set_weather(&mut self, weather: Weather) {
        self.network.weather = weather;
    }

    /// Ends everything that goes wrong, and switches everything on; frozen processes thaw by themselves.
    pub fn calm(&mut self) {
        self.is_calm = true;
        self.hunted_until_us = 0;
        self.set_weather(Weather::fair());
        for at in 0..self.seats.len() {
            self.clear_faults(at);
            self.seats[at].stalled_until_us = 0;
            self.later(1, Event::Restart(at));
        }
        self.heal();
        if self.rotten.is_some() {
            self.wish(Wish::Replace { learner: false });
        }
    }
}
