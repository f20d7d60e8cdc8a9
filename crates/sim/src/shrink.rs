//! From a life that breaks a promise to a smaller one that does.
//!
//! Every step leaves something out and lives again: whole things first, then stretches of troubles and requests, halved until
//! they are single ones. Where it still goes wrong, perhaps in another way, it stays left out. What is left out changes what comes
//! after it, so the result is the smallest that was found and not the smallest that there is.

use crate::campaign::survive;
use crate::life::Verdict;
use crate::options::Options;
use crate::troubles::KINDS;
use crate::without::Item;

/// How many lives are tried at most.
const TRIES: usize = 600;
/// Stretches shorter than this part of the whole are not tried.
const FINEST: u64 = 64;

struct Shrinking {
    options: Options,
    seed: u64,
    /// The smallest that was found.
    worst: Verdict,
    tries: usize,
}

/// Looks for a small life that breaks a promise. Whether the seed's own keeps them all.
pub fn run(options: &Options, seed: u64) -> bool {
    let worst = survive(options, seed);
    if worst.violation.is_none() {
        println!("seed {seed} keeps all promises: there is nothing to shrink");
        return true;
    }
    let mut shrinking = Shrinking { options: options.clone(), seed, worst, tries: 0 };
    shrinking.tell("all of it");
    shrinking.shorten();
    shrinking.leave_out_whole_things();
    shrinking.leave_out_stretches(|verdict| verdict.tally.troubles, Item::Troubles);
    shrinking.leave_out_stretches(|verdict| verdict.tally.asked, Item::Requests);
    shrinking.tell("the smallest that was found");
    if let Some(violation) = &shrinking.worst.violation {
        println!("  BROKEN: {}", violation.0);
    }
    println!("  again: {}", shrinking.command());
    false
}

impl Shrinking {
    /// Lives with these options. Keeps them if it goes wrong.
    fn fails_with(&mut self, options: Options) -> bool {
        if self.tries >= TRIES {
            return false;
        }
        self.tries += 1;
        let verdict = survive(&options, self.seed);
        let fails = verdict.violation.is_some();
        if fails {
            (self.options, self.worst) = (options, verdict);
        }
        fails
    }

    fn fails_without(&mut self, item: Item) -> bool {
        let text = item.to_string();
        let options = Options { without: self.options.without.and(item), ..self.options.clone() };
        let fails = self.fails_with(options);
        if fails {
            self.tell(&format!("without {text}"));
        }
        fails
    }

    fn shorten(&mut self) {
        while self.options.seconds > 1 {
            let seconds = self.options.seconds / 2;
            if !self.fails_with(Options { seconds, ..self.options.clone() }) {
                return;
            }
            self.tell(&format!("in {seconds} s"));
        }
    }

    fn leave_out_whole_things(&mut self) {
        let things = [Item::V2, Item::Watchers, Item::Lockers, Item::Quota, Item::Retuning];
        for item in things.into_iter().chain(KINDS.map(Item::Kind)) {
            self.fails_without(item);
        }
        for count in [1, 2, 4] {
            if self.fails_without(Item::ClientsAbove(count)) {
                break;
            }
        }
    }

    fn leave_out_stretches(&mut self, count: fn(&Verdict) -> u64, item: fn(std::ops::Range<u64>) -> Item) {
        let whole = count(&self.worst);
        let mut stretch = whole;
        while stretch >= 1 && stretch >= whole / FINEST && self.tries < TRIES {
            for start in (0..whole).step_by(stretch as usize) {
                let range = start..start + stretch;
                let is_left_out = |number| match item(0..1) {
                    Item::Troubles(_) => self.options.without.has_trouble(number),
                    _ => self.options.without.has_request(number),
                };
                if !range.clone().all(is_left_out) {
                    self.fails_without(item(range));
                }
            }
            stretch /= 2;
        }
    }

    fn command(&self) -> String {
        let Options { seconds, members, without, .. } = &self.options;
        let members = members.map(|members| format!(" --members {members}")).unwrap_or_default();
        let without = if without.0.is_empty() { String::new() } else { format!(" --without {without}") };
        format!("sim --seed {} --seconds {seconds}{members}{without} --trace", self.seed)
    }

    fn tell(&self, what: &str) {
        let Verdict { tally, entries, simulated_us, .. } = &self.worst;
        println!(
            "{what}: {} troubles, {} requests, {entries} entries, {:.0} s ({} lives tried)",
            tally.troubles,
            tally.asked,
            *simulated_us as f64 / 1e6,
            self.tries
        );
    }
}
