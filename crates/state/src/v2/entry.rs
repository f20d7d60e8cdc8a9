//! How an entry of the log that holds a v2 request is told from one that holds a v3 request: neither says so.

/// Methods that change something, or are logged for other reasons.
const METHODS: [&[u8]; 5] = [b"PUT", b"POST", b"DELETE", b"QGET", b"SYNC"];

/// Whether an entry names a v2 method behind its ID, where a v3 request would have a message. None of these names is one,
/// so such an entry is a v2 request; one that does not may still be.
pub(crate) fn names_method(data: &[u8]) -> bool {
    let after_id = match data {
        [0x08, id @ ..] => id.iter().position(|byte| *byte < 0x80).map(|end| &id[end + 1..]),
        _ => Some(data),
    };
    let Some([0x12, length, rest @ ..]) = after_id else { return false };
    rest.get(..usize::from(*length)).is_some_and(|name| METHODS.contains(&name))
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::{etcdserverpb as pb, v2pb};

    use super::*;
    use crate::v2::request;

    #[test]
    fn a_v2_request_is_recognised_with_any_id_and_no_v3_request_is_taken_for_one() {
        for method in ["PUT", "POST", "DELETE", "QGET", "SYNC"] {
            for id in [None, Some(0), Some(127), Some(128), Some(u64::MAX)] {
                let entry = v2pb::Request { id, ..request(method, "/1/a", "value") };
                assert!(names_method(&entry.encode_to_vec()), "{method} {id:?}");
                let wrapped = pb::InternalRaftRequest { id: id.unwrap_or(1), v2: Some(entry), ..Default::default() };
                assert!(!names_method(&wrapped.encode_to_vec()), "{method} {id:?} in a v3 request");
            }
        }
        let put = Some(pb::PutRequest { key: "PUT".into(), ..Default::default() });
        assert!(!names_method(&pb::InternalRaftRequest { put, ..Default::default() }.encode_to_vec()));
    }

    /// What makes it safe to look for a name: an entry whose message is made of these bytes could not be read.
    #[test]
    fn no_method_is_a_message() {
        for method in METHODS {
            assert!(v2pb::Request::decode(method).is_err(), "{}", method.escape_ascii());
            let entry = [&[0x12, method.len() as u8], method].concat();
            assert!(pb::InternalRaftRequest::decode(&entry[..]).is_err());
        }
    }

    #[test]
    fn what_is_cut_off_names_nothing() {
        for data in [&b""[..], b"\x08", b"\x08\xff", b"\x12", b"\x12\x03PU", b"\x12\xffPUT"] {
            assert!(!names_method(data), "{}", data.escape_ascii());
        }
    }
}
