//! What goes wrong, as troubles want it.

use disk::mem::Fault;

use super::{Cluster, End};
use crate::agenda::Event;
use crate::host::Drift;
use crate::network::Weather;

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

    /// Freezes a process for so long.
    pub fn freeze(&mut self, at: usize, time_us: u64) {
        self.seats[at].frozen_until_us = self.now_us + time_us;
        self.connections();
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
    pub fn set_wall(&self, at: usize, offset_us: i64) {
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
        let disk = &self.seats[at].disk;
        if !disk.is_off() {
            disk.clear_faults();
        }
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

    /// Ends everything that goes wrong, and switches everything on.
    pub fn calm(&mut self) {
        self.set_weather(Weather::fair());
        for at in 0..self.seats.len() {
            self.clear_faults(at);
            let now_us = self.now_us;
            let seat = &mut self.seats[at];
            seat.stalled_until_us = 0;
            seat.frozen_until_us = seat.frozen_until_us.min(now_us);
            self.later(1, Event::Restart(at));
        }
        self.heal();
    }
}
