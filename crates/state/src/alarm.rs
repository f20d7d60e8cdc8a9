//! Alarms: conditions that one member raises and all obey.

use std::collections::BTreeSet;

use prost::Message;
use proto::etcdserverpb::{AlarmMember, AlarmType};
use store::{Store, Table};

use crate::apply::{Fatal, bad_row};

/// The alarms that are set, by member and type.
#[derive(Clone, Debug, Default)]
pub(crate) struct Alarms(BTreeSet<(u64, i32)>);

impl Alarms {
    /// Reads the stored rows.
    pub(crate) fn restore(store: &Store) -> Result<Self, Fatal> {
        let mut alarms = Self::default();
        for (key, _) in store.rows(Table::Alarm) {
            let alarm = AlarmMember::decode(key.clone());
            alarms.set(alarm.map_err(|error| bad_row("alarm", &key, error.to_string()))?);
        }
        Ok(alarms)
    }

    /// Returns whether it was not set before.
    pub(crate) fn set(&mut self, alarm: AlarmMember) -> bool {
        self.0.insert((alarm.member_id, alarm.alarm))
    }

    /// Returns whether it was set.
    pub(crate) fn clear(&mut self, alarm: AlarmMember) -> bool {
        self.0.remove(&(alarm.member_id, alarm.alarm))
    }

    /// Whether any member has raised it.
    pub(crate) fn is_set(&self, kind: AlarmType) -> bool {
        self.0.iter().any(|(_, alarm)| *alarm == kind as i32)
    }

    /// Those of one type, or of all (0), in order.
    pub(crate) fn list(&self, kind: i32) -> Vec<AlarmMember> {
        let wanted = self.0.iter().filter(|(_, alarm)| kind == AlarmType::None as i32 || *alarm == kind);
        wanted.map(|(member_id, alarm)| AlarmMember { member_id: *member_id, alarm: *alarm }).collect()
    }
}
