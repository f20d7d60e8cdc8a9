//! Sets of keys, as permissions grant them.

use bytes::Bytes;
use proto::authpb;

/// What a user may reach with one kind of access: the union of its roles' permissions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeySet {
    /// In order; none overlaps or touches the next. The end is exclusive; `None` = there is none.
    spans: Vec<(Bytes, Option<Bytes>)>,
}

impl FromIterator<(Bytes, Bytes)> for KeySet {
    /// From keys and range ends as they stand in permissions.
    fn from_iter<T: IntoIterator<Item = (Bytes, Bytes)>>(permissions: T) -> Self {
        let mut all: Vec<_> = permissions.into_iter().filter_map(|(key, range_end)| span(&key, &range_end)).collect();
        all.sort_unstable();
        let mut spans: Vec<(Bytes, Option<Bytes>)> = Vec::new();
        for (start, end) in all {
            match spans.last_mut() {
                Some((_, last)) if last.as_ref().is_none_or(|last| start <= *last) => {
                    if ends_later(end.as_ref(), last.as_ref()) {
                        *last = end;
                    }
                }
                _ => spans.push((start, end)),
            }
        }
        Self { spans }
    }
}

/// What a permission spans. One that etcd would not accept any more, but may have stored long ago, spans nothing, as there.
fn span(key: &Bytes, range_end: &Bytes) -> Option<(Bytes, Option<Bytes>)> {
    if key.is_empty() {
        return None;
    }
    match range_end.as_ref() {
        [] => Some((key.clone(), Some([key.as_ref(), b"\0"].concat().into()))),
        [0] => Some((key.clone(), None)),
        end => (end > key.as_ref()).then(|| (key.clone(), Some(range_end.clone()))),
    }
}

fn ends_later(a: Option<&Bytes>, b: Option<&Bytes>) -> bool {
    match (a, b) {
        (_, None) => false,
        (None, Some(_)) => true,
        (Some(a), Some(b)) => a > b,
    }
}

impl KeySet {
    /// Whether all keys of a request's range are in the set. A range that ends before it begins counts as its first key.
    pub(crate) fn covers(&self, key: &[u8], range_end: &[u8]) -> bool {
        let behind = self.spans.partition_point(|(start, _)| start.as_ref() <= key);
        let Some((_, end)) = behind.checked_sub(1).and_then(|at| self.spans.get(at)) else { return false };
        let Some(end) = end else { return true };
        match range_end {
            [0] => false,
            range_end if range_end <= key => key < end.as_ref(),
            range_end => key < end.as_ref() && range_end <= end.as_ref(),
        }
    }
}

/// Whether a permission may be given on this range.
pub(crate) fn is_valid(permission: &authpb::Permission) -> bool {
    span(&permission.key, &permission.range_end).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(permissions: &[(&'static str, &'static str)]) -> KeySet {
        permissions
            .iter()
            .map(|(key, end)| (Bytes::from_static(key.as_bytes()), Bytes::from_static(end.as_bytes())))
            .collect()
    }

    #[test]
    fn a_single_key_is_that_key_alone() {
        let keys = set(&[("b", "")]);
        assert!(keys.covers(b"b", b""));
        assert!(keys.covers(b"b", b"b\0"), "the range that holds nothing but it");
        assert!(!keys.covers(b"b", b"c"));
        assert!(!keys.covers(b"a", b""));
        assert!(!keys.covers(b"b\0", b""));
    }

    /// The advisory of 3.7.1: who might read one key could watch everything behind it.
    #[test]
    fn from_a_key_on_needs_a_permission_without_an_end() {
        assert!(!set(&[("b", "")]).covers(b"b", b"\0"));
        assert!(!set(&[("b", "z")]).covers(b"b", b"\0"));
        assert!(set(&[("b", "\0")]).covers(b"b", b"\0"));
        assert!(set(&[("b", "\0")]).covers(b"c", b"\0"));
        assert!(!set(&[("b", "\0")]).covers(b"a", b"\0"));
    }

    #[test]
    fn permissions_that_touch_or_overlap_add_up() {
        let keys = set(&[("c", "e"), ("a", "c"), ("d", "g"), ("x", "\0"), ("y", "z")]);
        assert_eq!(keys.spans.len(), 2);
        assert!(keys.covers(b"a", b"g"));
        assert!(!keys.covers(b"a", b"h"));
        assert!(!keys.covers(b"f", b"y"), "there is a gap");
        assert!(keys.covers(b"yy", b"\0"));
    }

    #[test]
    fn an_inside_out_range_counts_as_its_first_key() {
        let keys = set(&[("b", "d")]);
        assert!(keys.covers(b"c", b"a"));
        assert!(keys.covers(b"c", b"c"));
        assert!(!keys.covers(b"d", b"a"));
    }

    #[test]
    fn permissions_that_mean_nothing_give_nothing() {
        for (key, end) in [("", ""), ("", "\0"), ("", "z"), ("c", "a"), ("c", "c")] {
            assert_eq!(set(&[(key, end)]), KeySet::default(), "{key:?} {end:?}");
        }
    }

    /// Against every way of asking over a small space of keys.
    #[test]
    fn covering_is_holding_every_key() {
        let names: Vec<Bytes> = (b'a'..=b'f').map(|letter| Bytes::copy_from_slice(&[letter])).collect();
        let ends: Vec<Bytes> = names.iter().cloned().chain([Bytes::new(), Bytes::from_static(b"\0")]).collect();
        let holds = |key: &Bytes, end: &Bytes, at: &Bytes| match end.as_ref() {
            [] => at == key,
            [0] => at >= key,
            _ => at >= key && at < end,
        };
        // Beside the names also what lies between and behind them.
        let space: Vec<Bytes> = names
            .iter()
            .flat_map(|name| [name.clone(), [name.as_ref(), b"x"].concat().into()])
            .chain([Bytes::from_static(b"zz")])
            .collect();
        for (k1, e1) in names.iter().flat_map(|k| ends.iter().map(move |e| (k, e))) {
            for (k2, e2) in names.iter().step_by(2).flat_map(|k| ends.iter().map(move |e| (k, e))) {
                let granted: KeySet = [(k1.clone(), e1.clone()), (k2.clone(), e2.clone())].into_iter().collect();
                for (key, end) in names.iter().flat_map(|k| ends.iter().map(move |e| (k, e))) {
                    if end.len() == 1 && end[0] != 0 && end <= key {
                        continue;
                    }
                    let wanted = space.iter().filter(|at| holds(key, end, at));
                    let expected = wanted.into_iter().all(|at| holds(k1, e1, at) || holds(k2, e2, at));
                    assert_eq!(
                        granted.covers(key, end),
                        expected,
                        "{key:?}-{end:?} of {k1:?}-{e1:?} and {k2:?}-{e2:?}"
                    );
                }
            }
        }
    }
}
