//! `user`, `role` and `auth`: who may do what.

use super::app::{Action as Does, Command};
use super::cluster::{Action, Body, Cluster, Error};
use super::context::{Context, Exit, name_and_password};
use super::endpoint::clean;
use super::flag::{Flag, list, switch, text};
use cli::json::{Object, push_text};
use cli::terminal;
use serde::Deserialize;

const ROLES: &[Flag] = &[list(&["roles"], "A role; may be given several times")];

const fn permission(help: [&'static str; 4]) -> [Flag; 4] {
    let [path, read, write, both] = help;
    [text(&["path"], "", path), switch(&["read"], read), switch(&["write"], write), switch(&["readwrite", "rw"], both)]
}

const GRANT: &[Flag] = &permission([
    "A key, or with * at its end all keys that begin so",
    "Allow reading it",
    "Allow writing it",
    "Allow both",
]);
const REVOKE: &[Flag] = &permission([
    "A key, or with * at its end all keys that begin so",
    "Forbid reading it",
    "Forbid writing it",
    "Forbid both",
]);

/// A command for one user or role.
const fn of_one(name: &'static str, about: &'static str, arguments: &'static str, run: super::app::Run) -> Command {
    Command { name, about, arguments, action: Does::Run(run), ..Command::NONE }
}

pub const USER: Command = Command {
    name: "user",
    about: "add, remove and change users",
    action: Does::Group(&[
        of_one("add", "add a user", "<user>", user_add),
        of_one("get", "show a user's roles", "<user>", user_get),
        of_one("list", "list the users", "<user>", user_list),
        of_one("remove", "remove a user", "<user>", user_remove),
        Command {
            flags: ROLES,
            ..of_one("grant", "give a user roles", "<user>", |context| change_roles(context, "grant"))
        },
        Command {
            flags: ROLES,
            ..of_one("revoke", "take roles from a user", "<user>", |context| change_roles(context, "revoke"))
        },
        of_one("passwd", "give a user another password", "<user>", user_passwd),
    ]),
    ..Command::NONE
};

pub const ROLE: Command = Command {
    name: "role",
    about: "add, remove and change roles",
    action: Does::Group(&[
        of_one("add", "add a role", "<role> ", role_add),
        of_one("get", "show what a role allows", "<role>", role_get),
        of_one("list", "list the roles", " ", role_list),
        of_one("remove", "remove a role", "<role>", role_remove),
        Command {
            flags: GRANT,
            ..of_one("grant", "let a role allow more", "<role>", |context| change_permission(context, "grant"))
        },
        Command {
            flags: REVOKE,
            ..of_one("revoke", "let a role allow less", "<role>", |context| change_permission(context, "revoke"))
        },
    ]),
    ..Command::NONE
};

pub const AUTH: Command = Command {
    name: "auth",
    about: "switch authentication on and off",
    action: Does::Group(&[
        of_one("enable", "switch authentication on", " ", |context| switch_auth(context, "PUT", "Enabled")),
        of_one("disable", "switch authentication off", " ", |context| switch_auth(context, "DELETE", "Disabled")),
    ]),
    ..Command::NONE
};

/// A client. `--debug` names its endpoints a second time here, as in the original.
fn client(context: &Context) -> Result<Cluster, Exit> {
    let client = context.client()?;
    if context.is_debug() {
        eprintln!("Cluster-Endpoints: {}", client.endpoints(", "));
    }
    Ok(client)
}

fn no_arguments(context: &Context) -> Result<(), Exit> {
    if context.args().is_empty() { Ok(()) } else { Err(Exit::plain("No arguments accepted")) }
}

fn user_name<'a>(context: &'a Context) -> Result<&'a str, Exit> {
    let [name] = context.args() else { return Err(Exit::plain("Please provide a username")) };
    Ok(name)
}

fn role_name<'a>(context: &'a Context) -> Result<&'a str, Exit> {
    let [name] = context.args() else { return Err(Exit::plain("Please provide a role name")) };
    Ok(name)
}

fn request(method: &'static str, kind: &str, name: &str, body: Body) -> Action {
    // An empty name is the list of all.
    let path = clean(&format!("/v2/auth/{kind}/{name}")).trim_end_matches('/').to_owned();
    Action { method, path, body, ..Action::default() }
}

/// Sends a request whose answer matters only if it is a refusal.
fn done(client: &mut Cluster, action: &Action, statuses: &[u16]) -> Result<(), Exit> {
    client.call(action).and_then(|response| response.expect_or_message(statuses)).map(drop).map_err(Exit::plain)
}

/// The JSON of a user, with fields that are left out when empty between and behind what is always there.
fn user_json(name: &str, password: &str, change: Option<(&str, &[String])>) -> Body {
    let mut out = String::new();
    let mut object = Object::begin(&mut out);
    object.text("user", name);
    object.some_text("password", password);
    object.value("roles", |out| out.push_str("null"));
    if let Some((verb, roles)) = change {
        object.list(verb, roles, |out, role| push_text(out, role));
    }
    object.end();
    Body::Json(out)
}

fn user_add(context: &Context) -> Result<(), Exit> {
    let argument = user_name(context)?;
    let mut client = client(context)?;
    let (name, password) = read_password(|| name_and_password("New password: ", argument))?;
    done(&mut client, &request("PUT", "users", &name, user_json(&name, &password, None)), &[200, 201])?;
    terminal::say(&format!("User {name} created"));
    Ok(())
}

fn read_password<T>(ask: impl FnOnce() -> std::io::Result<T>) -> Result<T, Exit> {
    ask().map_err(|error| Exit::plain(format!("Error reading password: {error}")))
}

fn user_passwd(context: &Context) -> Result<(), Exit> {
    let name = user_name(context)?;
    let mut client = client(context)?;
    let password = read_password(|| terminal::ask_password("New password: "))?;
    done(&mut client, &request("PUT", "users", name, user_json(name, &password, None)), &[200])?;
    terminal::say("Password updated");
    Ok(())
}

fn user_remove(context: &Context) -> Result<(), Exit> {
    let name = user_name(context)?;
    let mut client = client(context)?;
    done(&mut client, &request("DELETE", "users", name, Body::None), &[200, 201])?;
    terminal::say(&format!("User {name} removed"));
    Ok(())
}

fn change_roles(context: &Context, verb: &str) -> Result<(), Exit> {
    let roles = context.command.list("roles");
    if roles.is_empty() {
        return Err(Exit::plain("No roles specified; please use `--roles`"));
    }
    let name = user_name(context)?;
    let mut client = client(context)?;
    let body = user_json(name, "", Some((verb, roles)));
    done(&mut client, &request("PUT", "users", name, body), &[200])?;
    terminal::say(&format!("User {name} updated"));
    Ok(())
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Users {
    users: Option<Vec<User>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct User {
    user: String,
    roles: Option<Vec<Named>>,
}

/// A role: whole, or only its name.
#[derive(Deserialize)]
#[serde(untagged)]
enum Named {
    Role { role: String },
    Name(String),
}

fn user_list(context: &Context) -> Result<(), Exit> {
    no_arguments(context)?;
    let mut client = client(context)?;
    let users: Result<Users, Error> = client
        .call(&request("GET", "users", "", Body::None))
        .and_then(|response| response.expect_or_message(&[200])?.json());
    let users = users.map_err(Exit::plain)?.users.unwrap_or_default();
    users.iter().for_each(|user| terminal::say(&user.user));
    Ok(())
}

fn user_get(context: &Context) -> Result<(), Exit> {
    let name = user_name(context)?;
    let mut client = client(context)?;
    let user: Result<User, Error> = client
        .call(&request("GET", "users", name, Body::None))
        .and_then(|response| response.expect_or_message(&[200])?.json());
    let user = user.map_err(Exit::plain)?;
    let mut names = Vec::new();
    for role in user.roles.unwrap_or_default() {
        match role {
            // Go has put an empty name into the list before it found that these are whole roles.
            Named::Role { role } => {
                names.insert(0, String::new());
                names.push(role);
            }
            Named::Name(name) => names.push(name),
        }
    }
    terminal::say(&format!("User: {}\nRoles: {}", user.user, names.join(" ")));
    Ok(())
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Role {
    role: String,
    permissions: Permissions,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Permissions {
    kv: Paths,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
struct Paths {
    read: Option<Vec<String>>,
    write: Option<Vec<String>>,
}

impl Paths {
    fn write_to(&self, object: &mut Object<'_>) {
        object.object("kv", |kv| {
            for (name, paths) in [("read", &self.read), ("write", &self.write)] {
                kv.nullable_list(name, paths.as_deref().unwrap_or_default(), |out, path| push_text(out, path));
            }
        });
    }
}

fn role_json(name: &str, change: Option<(&str, &Paths)>) -> Body {
    let mut out = String::new();
    let mut object = Object::begin(&mut out);
    object.text("role", name);
    object.object("permissions", |object| Paths::default().write_to(object));
    if let Some((verb, paths)) = change {
        object.object(verb, |object| paths.write_to(object));
    }
    object.end();
    Body::Json(out)
}

fn role(client: &mut Cluster, method: &'static str, name: &str, body: Body) -> Result<Role, Error> {
    client.call(&request(method, "roles", name, body))?.expect_or_message(&[200])?.json()
}

fn role_list(context: &Context) -> Result<(), Exit> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Roles {
        roles: Option<Vec<Named>>,
    }
    no_arguments(context)?;
    let mut client = client(context)?;
    let roles: Result<Roles, Error> =
        client.call(&request("GET", "roles", "", Body::None)).and_then(|response| response.expect(&[200])?.json());
    for role in roles.map_err(Exit::plain)?.roles.unwrap_or_default() {
        let (Named::Role { role: name } | Named::Name(name)) = role;
        terminal::say(&name);
    }
    Ok(())
}

fn role_get(context: &Context) -> Result<(), Exit> {
    let name = role_name(context)?;
    let mut client = client(context)?;
    let role = role(&mut client, "GET", name, Body::None).map_err(Exit::plain)?;
    let mut out = format!("Role: {}\n", role.role);
    for (title, paths) in [("KV Read", role.permissions.kv.read), ("KV Write", role.permissions.kv.write)] {
        out.push_str(&format!("{title}:\n"));
        paths.unwrap_or_default().iter().for_each(|path| out.push_str(&format!("\t{path}\n")));
    }
    terminal::print(out.as_bytes());
    Ok(())
}

fn role_add(context: &Context) -> Result<(), Exit> {
    let name = role_name(context)?;
    let mut client = client(context)?;
    if role(&mut client, "GET", name, Body::None).is_ok() {
        return Err(Exit::plain(format!("Role {name} already exists")));
    }
    done(&mut client, &request("PUT", "roles", name, role_json(name, None)), &[200, 201])?;
    terminal::say(&format!("Role {name} created"));
    Ok(())
}

fn role_remove(context: &Context) -> Result<(), Exit> {
    let name = role_name(context)?;
    let mut client = client(context)?;
    done(&mut client, &request("DELETE", "roles", name, Body::None), &[200, 201])?;
    terminal::say(&format!("Role {name} removed"));
    Ok(())
}

fn change_permission(context: &Context, verb: &'static str) -> Result<(), Exit> {
    let flags = &context.command;
    let path = flags.text("path");
    if path.is_empty() {
        return Err(Exit::plain("No path specified; please use `--path`"));
    }
    let canonical = clean(path);
    if canonical != path {
        return Err(Exit::plain(format!("Not canonical path; please use `--path={canonical}`")));
    }
    let paths = || Some(vec![path.to_owned()]);
    let paths = match (flags.is("read"), flags.is("write"), flags.is("readwrite")) {
        (true, false, false) => Paths { read: paths(), write: None },
        (false, true, false) => Paths { read: None, write: paths() },
        (false, false, true) => Paths { read: paths(), write: paths() },
        _ => return Err(Exit::plain("Please specify exactly one of --read, --write or --readwrite")),
    };
    let name = role_name(context)?;
    let mut client = client(context)?;
    let before = role(&mut client, "GET", name, Body::None).map_err(Exit::plain)?;
    let after = role(&mut client, "PUT", name, role_json(name, Some((verb, &paths)))).map_err(Exit::plain)?;
    if before == after {
        let verb = if verb == "grant" { "granted" } else { "revoked" };
        terminal::print(format!("Role unchanged; already {verb}").as_bytes());
    }
    terminal::say(&format!("Role {name} updated"));
    Ok(())
}

fn switch_auth(context: &Context, method: &'static str, word: &str) -> Result<(), Exit> {
    no_arguments(context)?;
    let mut client = client(context)?;
    done(&mut client, &request(method, "enable", "", Body::None), &[200, 201])?;
    terminal::say(&format!("Authentication {word}"));
    Ok(())
}
