//! Just enough protobuf to look into answers under load without building messages from them.

/// The value of one field, as far as the load client needs it.
#[derive(Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// An integer, boolean or enum.
    Varint(u64),
    /// A string, bytes or message.
    Bytes(&'a [u8]),
}

/// The fields of a message in the order of the wire; ends early where the message is malformed.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, Value<'a>);

    fn next(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = varint(&mut self.0)?;
        let value = match tag & 7 {
            0 => Value::Varint(varint(&mut self.0)?),
            2 => {
                let length = usize::try_from(varint(&mut self.0)?).ok()?;
                let (value, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Value::Bytes(value)
            }
            _ => return None,
        };
        Some((tag >> 3, value))
    }
}

/// The value of integer field `number`; zero if absent, as protobuf has it.
pub fn integer(message: &[u8], number: u64) -> u64 {
    Fields(message)
        .find_map(|(field, value)| match value {
            Value::Varint(value) if field == number => Some(value),
            _ => None,
        })
        .unwrap_or(0)
}

/// The content of field `number`, empty if absent.
pub fn bytes(message: &[u8], number: u64) -> &[u8] {
    Fields(message)
        .find_map(|(field, value)| match value {
            Value::Bytes(value) if field == number => Some(value),
            _ => None,
        })
        .unwrap_or(&[])
}

/// Takes an integer from the front.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Appends an integer.
pub fn put_varint(output: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        output.push(value as u8 | 0x80);
        value >>= 7;
    }
    output.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use proto::etcdserverpb::{ResponseHeader, TxnResponse};

    #[test]
    fn fields_are_those_that_prost_wrote() {
        let header = ResponseHeader { revision: 300, raft_term: 2, ..Default::default() };
        let message = TxnResponse { header: Some(header), succeeded: true, responses: vec![] }.encode_to_vec();
        assert_eq!(integer(&message, 2), 1);
        assert_eq!(integer(bytes(&message, 1), 3), 300);
        assert_eq!(integer(&message, 9), 0);
    }

    #[test]
    fn a_cut_message_ends_the_fields() {
        let whole = ResponseHeader { revision: 300, ..Default::default() }.encode_to_vec();
        assert_eq!(Fields(&whole[..whole.len() - 1]).count(), 0);
        assert_eq!(Fields(&[0x0a, 0xff, 0xff, 0xff, 0x7f]).count(), 0);
    }

    #[test]
    fn integers_survive_the_round_trip() {
        for value in [0, 127, 128, 300, u64::MAX] {
            let mut output = Vec::new();
            put_varint(&mut output, value);
            assert_eq!(varint(&mut output.as_slice()), Some(value));
        }
    }
}
