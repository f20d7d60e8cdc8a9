//! What an answer looks like in each of etcdctl's five formats.

pub mod auth;
pub mod cluster;
pub mod kv;
pub mod lease;

use crate::call::{Failure, exit};
use crate::{go, terminal};
use cli::table::Table;
use cli::{Format, json};
use proto::etcdserverpb::ResponseHeader;
use std::fmt::Display;

/// The format is not offered for this answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Unsupported {
    /// The whole format is not.
    Format,
    /// Protobuf, for a type of Go that is none.
    Marshal(&'static str),
}

/// An answer that can be shown. Formats that are left out are not offered.
pub trait Show {
    /// `-w simple`.
    fn simple(&self, out: &mut Lines);

    /// `-w fields`.
    fn fields(&self, _out: &mut Lines) -> Result<(), Unsupported> {
        Err(Unsupported::Format)
    }

    /// `-w json`, without the line's end. Only member commands look at `hex`.
    fn json(&self, out: &mut String, hex: bool);

    /// `-w protobuf`.
    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Err(Unsupported::Format)
    }

    /// `-w table`.
    fn table(&self) -> Option<Table> {
        None
    }
}

/// Shows answers on stdout.
#[derive(Clone, Copy, Debug)]
pub struct Printer {
    /// How.
    pub format: Format,
    /// Whether bytes and IDs are written in hexadecimal.
    pub hex: bool,
}

impl Printer {
    /// Shows an answer, or fails with exit code 4 if the format is not offered for it.
    pub fn show(&self, answer: &dyn Show) -> Result<(), Failure> {
        terminal::print(&self.render(answer)?);
        Ok(())
    }

    fn render(&self, answer: &dyn Show) -> Result<Vec<u8>, Failure> {
        let mut lines = Lines { bytes: Vec::new(), hex: self.hex };
        let done = match self.format {
            Format::Simple => {
                answer.simple(&mut lines);
                Ok(())
            }
            Format::Fields => answer.fields(&mut lines),
            Format::Json => {
                let mut text = String::new();
                answer.json(&mut text, self.hex);
                lines.line(text);
                Ok(())
            }
            Format::Protobuf => answer.protobuf().map(|bytes| lines.bytes = bytes),
            Format::Table => {
                answer.table().ok_or(Unsupported::Format).map(|table| lines.bytes = table.draw().into_bytes())
            }
        };
        match done {
            Ok(()) => Ok(lines.bytes),
            Err(Unsupported::Format) => {
                Err(Failure::new(exit::BAD_FEATURE, format!("{} not supported as output format", self.format.name())))
            }
            Err(Unsupported::Marshal(name)) => {
                Err(Failure::new(exit::BAD_FEATURE, format!("marshal unsupported for type {name}")))
            }
        }
    }
}

/// Text that is being put together. Keys and values need not be UTF-8, so it is bytes.
#[derive(Debug, Default)]
pub struct Lines {
    /// What there is so far.
    pub bytes: Vec<u8>,
    hex: bool,
}

impl Lines {
    /// A line.
    pub fn line(&mut self, text: impl Display) {
        self.bytes.extend_from_slice(text.to_string().as_bytes());
        self.bytes.push(b'\n');
    }

    /// A key or a value on a line of its own.
    pub fn data(&mut self, data: &[u8]) {
        if self.hex {
            for byte in data {
                self.bytes.extend_from_slice(format!("\\x{byte:02x}").as_bytes());
            }
        } else {
            self.bytes.extend_from_slice(data);
        }
        self.bytes.push(b'\n');
    }

    /// A fact.
    pub fn field(&mut self, name: &str, value: impl Display) {
        self.line(format_args!("\"{name}\" : {value}"));
    }

    /// A fact in quotes.
    pub fn quoted(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.field(name, go::quote(value.as_ref()));
    }

    /// A lease's ID: 16 digits with `--hex`.
    pub fn lease_id(&mut self, name: &str, id: i64) {
        if self.hex { self.field(name, format_args!("{id:016x}")) } else { self.field(name, id) }
    }

    /// The ID of a member or a cluster.
    pub fn id(&mut self, name: &str, id: u64) {
        if self.hex { self.field(name, format_args!("{id:x}")) } else { self.field(name, id) }
    }

    /// A header. Without one, nothing.
    pub fn header(&mut self, header: Option<&ResponseHeader>) {
        let Some(header) = header else { return };
        self.id("ClusterID", header.cluster_id);
        self.id("MemberID", header.member_id);
        if header.revision > 0 {
            self.field("Revision", header.revision);
        }
        self.field("RaftTerm", header.raft_term);
    }
}

/// The fields of a header, in an object of their own or among others.
pub fn header_fields(object: &mut json::Object<'_>, header: Option<&ResponseHeader>) {
    let header = header.cloned().unwrap_or_default();
    object.some_number("cluster_id", header.cluster_id);
    object.some_number("member_id", header.member_id);
    object.some_number("revision", header.revision);
    object.some_number("raft_term", header.raft_term);
}

/// `"header":{…}`, if there is one.
pub fn header_json(object: &mut json::Object<'_>, header: Option<&ResponseHeader>) {
    if header.is_some() {
        object.object("header", |inner| header_fields(inner, header));
    }
}

/// An answer that says nothing but that something was done.
pub struct Done<'a, M> {
    /// What was done, for `simple`.
    pub text: String,
    /// The answer.
    pub message: &'a M,
    /// Its header.
    pub header: Option<&'a ResponseHeader>,
    /// Whether `fields` is offered.
    pub has_fields: bool,
    /// Go's name of the type, if that is none for protobuf.
    pub go_type: Option<&'static str>,
}

impl<M: prost::Message> Show for Done<'_, M> {
    fn simple(&self, out: &mut Lines) {
        out.line(&self.text);
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        if !self.has_fields {
            return Err(Unsupported::Format);
        }
        out.header(self.header);
        Ok(())
    }

    fn json(&self, out: &mut String, _hex: bool) {
        let mut object = json::Object::begin(out);
        header_json(&mut object, self.header);
        object.end();
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        match self.go_type {
            Some(name) => Err(Unsupported::Marshal(name)),
            None => Ok(self.message.encode_to_vec()),
        }
    }
}

/// Shows that something was done: `text`, or the answer's header.
macro_rules! show_done {
    ($printer:expr, $answer:expr, $($text:tt)*) => {
        $printer.show(&$crate::output::Done {
            text: format!($($text)*),
            message: &$answer,
            header: $answer.header.as_ref(),
            has_fields: true,
            go_type: None,
        })
    };
}
pub(crate) use show_done;
