//! Generates the messages, with the feature `client` the gRPC client stubs, and a schema of what services take and give, from
//! `proto/*.proto`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "kv.proto",
        "auth.proto",
        "rpc.proto",
        "membership.proto",
        "raft_internal.proto",
        "lease.proto",
        "lock.proto",
        "election.proto",
        "raft.proto",
        "wal.proto",
        "snap.proto",
        "v2.proto",
        "health.proto",
    ];
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(files, ["proto"])?;
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("schema.rs"), schema(&descriptors))?;
    let mut config = prost_build::Config::new();
    config.bytes(["."]);
    // What nobody may see is left out when they are printed: src/secret.rs.
    config.skip_debug([
        "etcdserverpb.AuthenticateRequest",
        "etcdserverpb.AuthenticateResponse",
        "etcdserverpb.AuthUserAddRequest",
        "etcdserverpb.AuthUserChangePasswordRequest",
        "etcdserverpb.InternalAuthenticateRequest",
        "authpb.User",
    ]);
    if std::env::var_os("CARGO_FEATURE_CLIENT").is_some() {
        tonic_prost_build::configure()
            .build_server(false)
            .build_client(true)
            .compile_fds_with_config(descriptors, config)?;
    } else {
        config.compile_fds(descriptors)?;
    }
    Ok(())
}

/// The tables behind `proto::schema`.
fn schema(descriptors: &FileDescriptorSet) -> String {
    let mut types = Types::default();
    for file in &descriptors.file {
        let scope = format!(".{}", file.package());
        file.enum_type.iter().for_each(|kind| types.add_enum(&scope, kind));
        file.message_type.iter().for_each(|message| types.add_message(&scope, message));
    }
    let mut out = String::new();
    // Only what methods need, in the order in which it is found.
    let mut wanted = Vec::new();
    let mut methods = String::new();
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                wanted.extend([method.input_type().to_owned(), method.output_type().to_owned()]);
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                let (request, response) = (symbol(method.input_type()), symbol(method.output_type()));
                writeln!(methods, "    (\"{path}\", &{request}, &{response}),").unwrap();
            }
        }
    }
    let mut next = 0;
    while let Some(name) = wanted.get(next).cloned() {
        next += 1;
        if !wanted[..next - 1].contains(&name) {
            types.write(&name, &mut wanted, &mut out);
        }
    }
    writeln!(out, "/// Each method with its request and its response.").unwrap();
    writeln!(out, "pub static METHODS: &[(&str, &Message, &Message)] = &[\n{methods}];").unwrap();
    out
}

/// `.etcdserverpb.PutRequest` as the name of a static.
fn symbol(name: &str) -> String {
    name.trim_start_matches('.').replace('.', "_").to_uppercase()
}

#[derive(Default)]
struct Types<'a> {
    messages: BTreeMap<String, &'a DescriptorProto>,
    enums: BTreeMap<String, &'a EnumDescriptorProto>,
}

impl<'a> Types<'a> {
    fn add_enum(&mut self, scope: &str, kind: &'a EnumDescriptorProto) {
        self.enums.insert(format!("{scope}.{}", kind.name()), kind);
    }

    fn add_message(&mut self, scope: &str, message: &'a DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        message.enum_type.iter().for_each(|kind| self.add_enum(&name, kind));
        message.nested_type.iter().for_each(|nested| self.add_message(&name, nested));
        self.messages.insert(name, message);
    }

    /// Writes the static of a type, and adds what it needs to `wanted`.
    fn write(&self, name: &str, wanted: &mut Vec<String>, out: &mut String) {
        let (symbol_name, full_name) = (symbol(name), name.trim_start_matches('.'));
        if let Some(kind) = self.enums.get(name) {
            let values = kind.value.iter().map(|value| format!("({:?}, {})", value.name(), value.number()));
            let values = values.collect::<Vec<_>>().join(", ");
            writeln!(out, "static {symbol_name}: Enum = Enum {{ name: {full_name:?}, values: &[{values}] }};").unwrap();
            return;
        }
        let message = self.messages[name];
        assert!(message.field.len() <= 64, "{full_name}: readers count on at most 64 fields");
        let oneofs = message.oneof_decl.iter().map(|oneof| format!("\"{full_name}.{}\"", oneof.name()));
        let oneofs = oneofs.collect::<Vec<_>>().join(", ");
        writeln!(out, "static {symbol_name}: Message = Message {{\n    name: {full_name:?},\n    oneofs: &[{oneofs}],")
            .unwrap();
        writeln!(out, "    fields: &[").unwrap();
        for field in &message.field {
            let kind = match field.r#type() {
                Type::Bool => "Bool".into(),
                Type::Int32 => "Int32".into(),
                Type::Int64 => "Int64".into(),
                Type::Uint32 => "Uint32".into(),
                Type::Uint64 => "Uint64".into(),
                Type::String => "String".into(),
                Type::Bytes => "Bytes".into(),
                Type::Enum => format!("Enum(&{})", symbol(field.type_name())),
                Type::Message => format!("Message(&{})", symbol(field.type_name())),
                other => panic!("{full_name}.{}: {other:?} is a kind that no method used so far", field.name()),
            };
            if field.type_name.is_some() {
                wanted.push(field.type_name().to_owned());
            }
            let is_repeated = field.label() == Label::Repeated;
            let (name, number, oneof) = (field.name(), field.number(), field.oneof_index);
            let json_name = field.json_name.clone().unwrap_or_else(|| json_name(name));
            writeln!(
                out,
                "        Field {{ name: {name:?}, json_name: {json_name:?}, number: {number}, kind: Kind::{kind}, \
                 is_repeated: {is_repeated}, oneof: {oneof:?} }},"
            )
            .unwrap();
        }
        writeln!(out, "    ],\n}};").unwrap();
    }
}

/// A field's name as protobuf's JSON mapping writes it: no underscores, and a capital behind each.
fn json_name(name: &str) -> String {
    let mut capital = false;
    let mut out = String::new();
    for letter in name.chars() {
        match letter {
            '_' => capital = true,
            letter if std::mem::take(&mut capital) => out.extend(letter.to_uppercase()),
            letter => out.push(letter),
        }
    }
    out
}
