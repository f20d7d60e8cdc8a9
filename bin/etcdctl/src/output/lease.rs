//! Leases.

use super::{Lines, Show, Unsupported, header_fields};
use cli::json::{Object, push_base64};
use prost::Message;
use proto::etcdserverpb::{
    LeaseGrantResponse, LeaseKeepAliveResponse, LeaseLeasesResponse, LeaseTimeToLiveResponse, ResponseHeader,
};

impl Show for LeaseGrantResponse {
    fn simple(&self, out: &mut Lines) {
        out.line(format_args!("lease {:016x} granted with TTL({}s)", self.id, self.ttl));
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        id_and_ttl(out, self.header.as_ref(), self.id, self.ttl);
        Ok(())
    }

    fn json(&self, out: &mut String, _hex: bool) {
        let mut object = Object::begin(out);
        header_fields(&mut object, self.header.as_ref());
        object.number("ID", self.id);
        object.number("TTL", self.ttl);
        object.text("Error", &self.error);
        object.end();
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Ok(self.encode_to_vec())
    }
}

impl Show for LeaseKeepAliveResponse {
    fn simple(&self, out: &mut Lines) {
        out.line(format_args!("lease {:016x} keepalived with TTL({})", self.id, self.ttl));
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        id_and_ttl(out, self.header.as_ref(), self.id, self.ttl);
        Ok(())
    }

    fn json(&self, out: &mut String, _hex: bool) {
        let mut object = Object::begin(out);
        header_fields(&mut object, self.header.as_ref());
        object.number("ID", self.id);
        object.number("TTL", self.ttl);
        object.end();
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Ok(self.encode_to_vec())
    }
}

/// The lines that both have.
fn id_and_ttl(out: &mut Lines, header: Option<&ResponseHeader>, id: i64, ttl: i64) {
    out.header(header);
    out.lease_id("ID", id);
    out.field("TTL", ttl);
}

/// What is left of a lease, with its keys if those were asked for.
pub struct TimeToLive<'a> {
    /// The answer.
    pub answer: &'a LeaseTimeToLiveResponse,
    /// Whether keys were asked for.
    pub with_keys: bool,
}

impl Show for TimeToLive<'_> {
    fn simple(&self, out: &mut Lines) {
        let answer = self.answer;
        if answer.granted_ttl == 0 && answer.ttl == -1 {
            return out.line(format_args!("lease {:016x} already expired", answer.id));
        }
        let mut text =
            format!("lease {:016x} granted with TTL({}s), remaining({}s)", answer.id, answer.granted_ttl, answer.ttl)
                .into_bytes();
        if self.with_keys {
            text.extend_from_slice(b", attached keys([");
            text.extend_from_slice(&answer.keys.join(&b' '));
            text.extend_from_slice(b"])");
        }
        out.bytes.append(&mut text);
        out.line("");
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        out.header(self.answer.header.as_ref());
        out.lease_id("ID", self.answer.id);
        out.field("TTL", self.answer.ttl);
        out.field("GrantedTTL", self.answer.granted_ttl);
        self.answer.keys.iter().for_each(|key| out.quoted("Key", key));
        Ok(())
    }

    fn json(&self, out: &mut String, _hex: bool) {
        let mut object = Object::begin(out);
        header_fields(&mut object, self.answer.header.as_ref());
        object.number("id", self.answer.id);
        object.number("ttl", self.answer.ttl);
        object.number("granted-ttl", self.answer.granted_ttl);
        object.nullable_list("keys", &self.answer.keys, |out, key| push_base64(out, key));
        object.end();
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Ok(self.answer.encode_to_vec())
    }
}

impl Show for LeaseLeasesResponse {
    fn simple(&self, out: &mut Lines) {
        out.line(format_args!("found {} leases", self.leases.len()));
        self.leases.iter().for_each(|lease| out.line(format_args!("{:016x}", lease.id)));
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        out.header(self.header.as_ref());
        self.leases.iter().for_each(|lease| out.lease_id("ID", lease.id));
        Ok(())
    }

    fn json(&self, out: &mut String, _hex: bool) {
        let mut object = Object::begin(out);
        header_fields(&mut object, self.header.as_ref());
        object.list("leases", &self.leases, |out, lease| {
            let mut inner = Object::begin(out);
            inner.number("id", lease.id);
            inner.end();
        });
        object.end();
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Ok(self.encode_to_vec())
    }
}
