//! Requests written once and patched: under load only the key's digits change.

use crate::load::Requests;
use crate::protobuf::put_varint;
use crate::wire::Method;
use bytes::Bytes;
use prost::Message;
use proto::etcdserverpb::{PutRequest, RangeRequest};
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use std::cell::Cell;
use std::rc::Rc;

const PREFIX: &str = "bench/key/";
const DIGITS: usize = 8;
/// Operations per transaction when keys are only wanted there; servers allow 128.
pub const TXN_OPERATIONS: u64 = 100;
/// Same in every run, so that every server gets the same load.
const SEED: u64 = 0x6b65_656c_736f_6e01;

/// A generator for the clients from number `first` on.
pub fn random(first: usize) -> SmallRng {
    SmallRng::seed_from_u64(SEED + first as u64)
}

/// Key number `number`.
pub fn key(number: u64) -> Bytes {
    format!("{PREFIX}{number:0DIGITS$}").into()
}

/// The range of all keys: key and range end.
pub fn all_keys() -> (Bytes, Bytes) {
    // `0` follows `/`.
    (PREFIX.into(), format!("{}0", PREFIX.trim_end_matches('/')).into())
}

/// A value that does not compress.
pub fn value(bytes: usize) -> Bytes {
    let mut value = vec![0; bytes];
    random(usize::MAX >> 1).fill_bytes(&mut value);
    value.into()
}

/// An encoded message whose first field is a key.
pub struct Template {
    message: Vec<u8>,
}

impl Template {
    /// Puts `value_bytes` bytes.
    pub fn put(value_bytes: usize) -> Template {
        Template {
            message: PutRequest { key: key(0), value: value(value_bytes), ..Default::default() }.encode_to_vec(),
        }
    }

    /// Reads one key.
    pub fn range(serializable: bool) -> Template {
        Template { message: RangeRequest { key: key(0), serializable, ..Default::default() }.encode_to_vec() }
    }

    /// Appends the message for key `number`.
    pub fn write(&self, number: u64, output: &mut Vec<u8>) {
        // Tag and length of the key take a byte each.
        let digits = output.len() + 2 + PREFIX.len();
        output.extend_from_slice(&self.message);
        let mut rest = number;
        for digit in output[digits..digits + DIGITS].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }

    /// Appends it as one operation of a transaction's success branch, `field` being its field in `RequestOp`.
    pub fn write_operation(&self, number: u64, field: u8, output: &mut Vec<u8>) {
        let mut operation = Vec::with_capacity(4);
        operation.push(field << 3 | 2);
        put_varint(&mut operation, self.message.len() as u64);
        output.push(2 << 3 | 2);
        put_varint(output, (operation.len() + self.message.len()) as u64);
        output.extend_from_slice(&operation);
        self.write(number, output);
    }
}

/// Counts up to a limit, shared by the connections of a load.
#[derive(Clone)]
pub struct Counter {
    next: Rc<Cell<u64>>,
    limit: u64,
}

impl Counter {
    /// Counts 0..limit.
    pub fn new(limit: u64) -> Counter {
        Counter { next: Rc::default(), limit }
    }

    /// The next number, if there is one.
    pub fn take(&self) -> Option<u64> {
        let number = self.next.get();
        self.next.set(number + 1);
        (number < self.limit).then_some(number)
    }

    /// The next number scattered over the range: every number once, neighbours far apart.
    pub fn take_scattered(&self) -> Option<u64> {
        /// A prime above every limit in use, hence without a common divisor.
        const STEP: u64 = 982_451_653;
        self.take().map(|number| (u128::from(number) * u128::from(STEP) % u128::from(self.limit)) as u64)
    }
}

/// Puts each key once, many to a transaction.
pub struct FillByTxn {
    template: Template,
    counter: Counter,
}

impl FillByTxn {
    /// Puts the keys that `counter` gives, times [`TXN_OPERATIONS`].
    pub fn new(counter: Counter) -> FillByTxn {
        FillByTxn { template: Template::put(super::VALUE_BYTES), counter }
    }
}

impl Requests for FillByTxn {
    fn next(&mut self, _: usize, message: &mut Vec<u8>) -> Option<Method> {
        const REQUEST_PUT: u8 = 2;
        let batch = self.counter.take()?;
        for number in batch * TXN_OPERATIONS..(batch + 1) * TXN_OPERATIONS {
            self.template.write_operation(number, REQUEST_PUT, message);
        }
        Some(Method::Txn)
    }

    fn accept(&mut self, _: usize, message: &[u8]) -> bool {
        crate::protobuf::integer(message, 2) == 1 // `succeeded`
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::etcdserverpb::{TxnRequest, request_op::Request};
    use std::collections::BTreeSet;

    #[test]
    fn a_patched_template_is_the_message_for_that_key() {
        let mut message = Vec::new();
        Template::put(16).write(1_234_567, &mut message);
        let put = PutRequest::decode(message.as_slice()).expect("a put");
        assert_eq!((put.key, put.value), (Bytes::from("bench/key/01234567"), value(16)));
        let mut message = Vec::new();
        Template::range(true).write(7, &mut message);
        let range = RangeRequest::decode(message.as_slice()).expect("a range");
        assert_eq!((range.key, range.serializable), (Bytes::from("bench/key/00000007"), true));
    }

    #[test]
    fn a_fill_transaction_puts_each_of_its_keys() {
        let mut message = Vec::new();
        FillByTxn::new(Counter::new(1)).next(0, &mut message).expect("one transaction");
        let txn = TxnRequest::decode(message.as_slice()).expect("a transaction");
        let keys = txn.success.into_iter().map(|operation| match operation.request {
            Some(Request::RequestPut(put)) => put.key,
            other => panic!("not a put: {other:?}"),
        });
        assert!(keys.eq((0..TXN_OPERATIONS).map(key)));
    }

    #[test]
    fn a_scattered_count_gives_every_number_once() {
        let counter = Counter::new(1000);
        let numbers: BTreeSet<u64> = std::iter::from_fn(|| counter.take_scattered()).collect();
        assert!(numbers.into_iter().eq(0..1000));
    }

    #[test]
    fn all_keys_lie_in_the_range_of_all_keys() {
        let (from, to) = all_keys();
        assert!(from <= key(0) && key(99_999_999) < to);
    }
}
