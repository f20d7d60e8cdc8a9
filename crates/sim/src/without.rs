//! What a life goes without although its seed has it: for whoever looks for the smallest life that still breaks a promise.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::options::Settings;
use crate::troubles::{KINDS, Kind};

/// One thing to go without.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// A kind of trouble.
    Kind(Kind),
    /// The v2 API.
    V2,
    /// Clients that watch or wait.
    Watchers,
    /// Clients that lock.
    Lockers,
    /// A quota.
    Quota,
    /// Other flags after a restart.
    Retuning,
    /// All clients but so many.
    ClientsAbove(usize),
    /// Troubles, by number.
    Troubles(Range<u64>),
    /// Requests, by number.
    Requests(Range<u64>),
}

impl fmt::Display for Item {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(out, "{kind:?}"),
            Self::ClientsAbove(count) => write!(out, "ClientsAbove:{count}"),
            Self::Troubles(Range { start, end }) => write!(out, "Troubles:{start}-{end}"),
            Self::Requests(Range { start, end }) => write!(out, "Requests:{start}-{end}"),
            other => write!(out, "{other:?}"),
        }
    }
}

impl FromStr for Item {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
        let range = |text: &str| {
            let (from, to) = text.split_once('-').ok_or_else(|| format!("{text}: not a range like 3-9"))?;
            Ok::<_, String>(number(from)?..number(to)?)
        };
        Ok(match text.split_once(':') {
            Some(("ClientsAbove", count)) => Self::ClientsAbove(number(count)? as usize),
            Some(("Troubles", of)) => Self::Troubles(range(of)?),
            Some(("Requests", of)) => Self::Requests(range(of)?),
            _ => {
                let kind = KINDS.into_iter().map(Self::Kind);
                let known = kind.chain([Self::V2, Self::Watchers, Self::Lockers, Self::Quota, Self::Retuning]);
                known
                    .into_iter()
                    .find(|item| item.to_string() == text)
                    .ok_or_else(|| format!("nothing is called {text}"))?
            }
        })
    }
}

/// All that a life goes without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Without(pub Vec<Item>);

impl fmt::Display for Without {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items: Vec<String> = self.0.iter().map(Item::to_string).collect();
        out.write_str(&items.join(","))
    }
}

impl FromStr for Without {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(Item::from_str).collect::<Result<_, _>>().map(Self)
    }
}

impl Without {
    /// One thing more.
    pub fn and(&self, item: Item) -> Self {
        Self(self.0.iter().cloned().chain([item]).collect())
    }

    /// Whether it goes without all troubles of a kind.
    pub fn has_kind(&self, kind: Kind) -> bool {
        self.0.contains(&Item::Kind(kind))
    }

    /// Whether it goes without the trouble of this number.
    pub fn has_trouble(&self, number: u64) -> bool {
        self.0.iter().any(|item| matches!(item, Item::Troubles(range) if range.contains(&number)))
    }

    /// Whether it goes without the request of this number.
    pub fn has_request(&self, number: u64) -> bool {
        self.0.iter().any(|item| matches!(item, Item::Requests(range) if range.contains(&number)))
    }

    /// Takes it from what a seed makes of a world.
    pub fn take_from(&self, settings: &mut Settings) {
        for item in &self.0 {
            match item {
                Item::V2 => settings.speaks_v2 = false,
                Item::Watchers => settings.watchers = 0,
                Item::Lockers => settings.lockers = 0,
                Item::Quota => settings.quota_bytes = 0,
                Item::Retuning => settings.retunes = false,
                Item::ClientsAbove(count) => settings.clients = settings.clients.min(*count),
                Item::Kind(_) | Item::Troubles(_) | Item::Requests(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_can_be_typed() {
        let text = "Freeze,V2,Quota,ClientsAbove:2,Troubles:3-9,Requests:0-500";
        let without: Without = text.parse().unwrap();
        assert_eq!(without.to_string(), text);
        assert!(without.has_kind(Kind::Freeze) && !without.has_kind(Kind::Stall));
        assert!(without.has_trouble(8) && !without.has_trouble(9) && without.has_request(499));
        assert!("Frieze".parse::<Without>().is_err() && "Troubles:3".parse::<Without>().is_err());
    }
}
