//! Users and roles.

use super::{Lines, Show, Unsupported, header_json};
use cli::json::{Object, push_text};
use prost::Message;
use proto::authpb::{Permission, permission::Type};
use proto::etcdserverpb::{
    AuthRoleGetResponse, AuthRoleListResponse, AuthStatusResponse, AuthUserGetResponse, AuthUserListResponse,
};

/// A role and what it may do.
pub struct Role<'a> {
    /// Its name.
    pub name: &'a str,
    /// The answer.
    pub answer: &'a AuthRoleGetResponse,
}

/// The keys of a permission: `key`, `[a, b)`, `[a, <open ended>`; and the prefix that a range stands for.
pub fn range_text(key: &[u8], range_end: &[u8]) -> String {
    let text = String::from_utf8_lossy;
    match range_end {
        b"" => text(key).into_owned(),
        b"\0" => format!("[{}, <open ended>", text(key)),
        end => format!("[{}, {})", text(key), text(end)),
    }
}

fn permission_line(permission: &Permission) -> String {
    let is_prefix = !permission.key.is_empty() && client::prefix_end(&permission.key) == permission.range_end;
    let keys = range_text(&permission.key, &permission.range_end);
    if is_prefix {
        format!("\t{keys} (prefix {})", String::from_utf8_lossy(&permission.key))
    } else {
        format!("\t{keys}")
    }
}

impl Show for Role<'_> {
    fn simple(&self, out: &mut Lines) {
        out.line(format_args!("Role {}", self.name));
        for (title, other) in [("KV Read:", Type::Write), ("KV Write:", Type::Read)] {
            out.line(title);
            let allowed = self.answer.perm.iter().filter(|permission| permission.perm_type() != other);
            allowed.for_each(|permission| out.line(permission_line(permission)));
        }
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        out.header(self.answer.header.as_ref());
        for permission in &self.answer.perm {
            // Two blanks: etcdctl prints it so.
            out.line(format_args!("\"PermType\" :  {}", permission.perm_type().as_str_name()));
            out.quoted("Key", &permission.key);
            out.quoted("RangeEnd", &permission.range_end);
        }
        Ok(())
    }

    fn json(&self, out: &mut String, _hex: bool) {
        let mut object = Object::begin(out);
        header_json(&mut object, self.answer.header.as_ref());
        object.some_list("perm", &self.answer.perm, |out, permission| {
            let mut inner = Object::begin(out);
            inner.some_number("permType", permission.perm_type);
            inner.some_bytes("key", &permission.key);
            inner.some_bytes("range_end", &permission.range_end);
            inner.end();
        });
        object.end();
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Ok(self.answer.encode_to_vec())
    }
}

impl Show for AuthRoleListResponse {
    fn simple(&self, out: &mut Lines) {
        self.roles.iter().for_each(|role| out.line(role));
    }

    fn fields(&self, out: &mut Lines) -> Result<(), Unsupported> {
        out.header(self.header.as_ref());
        let roles: String = self.roles.iter().map(|role| format!(" {}", crate::go::quote(role.as_bytes()))).collect();
        out.line(format_args!("\"Roles\" :{roles}"));
        Ok(())
    }

    fn json(&self, out: &mut String, _hex: bool) {
        let mut object = Object::begin(out);
        header_json(&mut object, self.header.as_ref());
        object.some_list("roles", &self.roles, |out, role| push_text(out, role));
        object.end();
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Ok(self.encode_to_vec())
    }
}

/// A user and its roles.
pub struct User<'a> {
    /// Its name.
    pub name: &'a str,
    /// The answer.
    pub answer: &'a AuthUserGetResponse,
}

impl Show for User<'_> {
    fn simple(&self, out: &mut Lines) {
        let roles: String = self.answer.roles.iter().map(|role| format!(" {role}")).collect();
        out.line(format_args!("User: {}\nRoles:{roles}", self.name));
    }

    fn json(&self, out: &mut String, _hex: bool) {
        let mut object = Object::begin(out);
        header_json(&mut object, self.answer.header.as_ref());
        object.some_list("roles", &self.answer.roles, |out, role| push_text(out, role));
        object.end();
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Ok(self.answer.encode_to_vec())
    }
}

impl Show for AuthUserListResponse {
    fn simple(&self, out: &mut Lines) {
        self.users.iter().for_each(|user| out.line(user));
    }

    fn json(&self, out: &mut String, _hex: bool) {
        let mut object = Object::begin(out);
        header_json(&mut object, self.header.as_ref());
        object.some_list("users", &self.users, |out, user| push_text(out, user));
        object.end();
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Ok(self.encode_to_vec())
    }
}

impl Show for AuthStatusResponse {
    fn simple(&self, out: &mut Lines) {
        out.line(format_args!("Authentication Status: {}", self.enabled));
        out.line(format_args!("AuthRevision: {}", self.auth_revision));
    }

    fn json(&self, out: &mut String, _hex: bool) {
        let mut object = Object::begin(out);
        header_json(&mut object, self.header.as_ref());
        object.some_flag("enabled", self.enabled);
        object.some_number("authRevision", self.auth_revision);
        object.end();
    }

    fn protobuf(&self) -> Result<Vec<u8>, Unsupported> {
        Ok(self.encode_to_vec())
    }
}
