//! Keys, values, transactions and watches.

use super::{Lines, Show, Unsupported, header_json};
use cli::json::{Object, push_list};
use prost::Message;
use proto::etcdserverpb::{
    DeleteRangeResponse, PutResponse, RangeResponse, ResponseOp, TxnResponse, WatchResponse, response_op::Response,
};
use proto::mvccpb::{Event, KeyValue, event::EventType};

/// Key and value on a line each.
fn pair(out: &mut Lines, kv: &KeyValue) {
    out.data(&kv.key);
    out.data(&kv.value);
}

fn pair_fields(out: &mut Lines, prefix: &str, kv: &KeyValue) {
    out.quoted(&format!("{prefix}Key"), &kv.key);
    out.field(&format!("{prefix}CreateRevision"), kv.create_revision);
    out.field(&format!("{prefix}ModRevision"), kv.mod_revision);
    out.field(&format!("{prefix}Version"), kv.version);
    out.quoted(&format!("{prefix}Value"), &kv.value);
    out.lease_id(&format!("{prefix}Lease"), kv.lease);
}

fn pair_json(out: &mut String, kv: &KeyValue) {
    let mut object = Object::begin(out);
    object.some_bytes("key", &kv.key);
    object.some_number("create_revision", kv.create_revision);
    object.some_number("mod_revision", kv.mod_revision);
    object.some_number("version", kv.version);
    object.some_bytes("value", &kv.value);
    object.some_number("lease", kv.lease);
    object.end();
}

/// Keys that were read; perhaps only their values are wanted.
pub struct Pairs<'a> {
    /// The answer.
    pub answer: &'a RangeResponse,
    /// Whether keys are left out.
    pub values_only: bool,
}

impl Show for Pairs<'_> {
    fn simple(&self, out: &mut Lines) {
        for kv in &self.answer.kvs {
            if !self.values_only {
                out.data(&kv.key);
            }
            out.data(&kv.value);
        }
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        out.header(self.answer.header.as_ref());
        self.answer.kvs.iter().for_each(|kv| pair_fields(out, "", kv));
        out.field("More", self.answer.more);
        out.field("Count", self.answer.count);
        Ok(())
    }

    fn json(&self, out: &mut String, _hex: bool) {
        let mut object = Object::begin(out);
        header_json(&mut object, self.answer.header.as_ref());
        object.some_list("kvs", &self.answer.kvs, pair_json);
        object.some_flag("more", self.answer.more);
        object.some_number("count", self.answer.count);
        object.end();
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Ok(self.answer.encode_to_vec())
    }
}

impl Show for PutResponse {
    fn simple(&self, out: &mut Lines) {
        out.line("OK");
        self.prev_kv.iter().for_each(|kv| pair(out, kv));
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        out.header(self.header.as_ref());
        self.prev_kv.iter().for_each(|kv| pair_fields(out, "Prev", kv));
        Ok(())
    }

    fn json(&self, out: &mut String, _hex: bool) {
        let mut object = Object::begin(out);
        header_json(&mut object, self.header.as_ref());
        if let Some(kv) = &self.prev_kv {
            object.value("prev_kv", |out| pair_json(out, kv));
        }
        object.end();
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Ok(self.encode_to_vec())
    }
}

impl Show for DeleteRangeResponse {
    fn simple(&self, out: &mut Lines) {
        out.line(self.deleted);
        self.prev_kvs.iter().for_each(|kv| pair(out, kv));
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        out.header(self.header.as_ref());
        out.field("Deleted", self.deleted);
        self.prev_kvs.iter().for_each(|kv| pair_fields(out, "Prev", kv));
        Ok(())
    }

    fn json(&self, out: &mut String, _hex: bool) {
        let mut object = Object::begin(out);
        header_json(&mut object, self.header.as_ref());
        object.some_number("deleted", self.deleted);
        object.some_list("prev_kvs", &self.prev_kvs, pair_json);
        object.end();
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Ok(self.encode_to_vec())
    }
}

/// Calls `with` on what an operation of a transaction answered.
fn each(op: &ResponseOp, with: &mut dyn FnMut(&'static str, &dyn Show)) {
    match &op.response {
        Some(Response::ResponseRange(answer)) => with("response_range", &Pairs { answer, values_only: false }),
        Some(Response::ResponsePut(answer)) => with("response_put", answer),
        Some(Response::ResponseDeleteRange(answer)) => with("response_delete_range", answer),
        Some(Response::ResponseTxn(answer)) => with("response_txn", answer),
        None => {}
    }
}

impl Show for TxnResponse {
    fn simple(&self, out: &mut Lines) {
        out.line(if self.succeeded { "SUCCESS" } else { "FAILURE" });
        for op in &self.responses {
            out.line("");
            each(op, &mut |_, answer| answer.simple(out));
        }
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        out.header(self.header.as_ref());
        out.field("Succeeded", self.succeeded);
        let mut done = Ok(());
        for op in &self.responses {
            each(op, &mut |_, answer| done = answer.fields(out));
        }
        done
    }

    fn json(&self, out: &mut String, hex: bool) {
        let mut object = Object::begin(out);
        header_json(&mut object, self.header.as_ref());
        object.some_flag("succeeded", self.succeeded);
        object.some_list("responses", &self.responses, |out, op| {
            let mut outer = Object::begin(out);
            outer.object("Response", |inner| {
                each(op, &mut |name, answer| inner.value(name, |out| answer.json(out, hex)));
            });
            outer.end();
        });
        object.end();
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Ok(self.encode_to_vec())
    }
}

fn event_json(out: &mut String, event: &Event) {
    let mut object = Object::begin(out);
    object.some_number("type", event.r#type);
    if let Some(kv) = &event.kv {
        object.value("kv", |out| pair_json(out, kv));
    }
    if let Some(kv) = &event.prev_kv {
        object.value("prev_kv", |out| pair_json(out, kv));
    }
    object.end();
}

/// `PUT` or `DELETE`.
pub fn event_name(event: &Event) -> &'static str {
    match event.r#type() {
        EventType::Put => "PUT",
        EventType::Delete => "DELETE",
    }
}

impl Show for WatchResponse {
    fn simple(&self, out: &mut Lines) {
        for event in &self.events {
            out.line(event_name(event));
            event.prev_kv.iter().chain(&event.kv).for_each(|kv| pair(out, kv));
        }
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        out.header(self.header.as_ref());
        for event in &self.events {
            out.field("Type", event_name(event));
            event.prev_kv.iter().for_each(|kv| pair_fields(out, "Prev", kv));
            event.kv.iter().for_each(|kv| pair_fields(out, "", kv));
        }
        Ok(())
    }

    fn json(&self, out: &mut String, _hex: bool) {
        let mut object = Object::begin(out);
        object.object("Header", |inner| super::header_fields(inner, self.header.as_ref()));
        if self.events.is_empty() {
            object.value("Events", |out| out.push_str("null"));
        } else {
            object.value("Events", |out| push_list(out, &self.events, event_json));
        }
        object.number("CompactRevision", self.compact_revision);
        object.flag("Canceled", self.canceled);
        object.flag("Created", self.created);
        object.text("CancelReason", &self.cancel_reason);
        object.end();
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        // etcdctl puts the message together anew, without the watch's ID.
        Ok(WatchResponse { watch_id: 0, fragment: false, ..self.clone() }.encode_to_vec())
    }
}
