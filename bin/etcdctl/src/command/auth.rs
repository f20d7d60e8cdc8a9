//! `auth`, `user` and `role`.

use super::Command;
use crate::call::{Call, Failure, exit};
use crate::flags::{Flag, Kind, switch, text};
use crate::output::auth::{Role, User, range_text};
use crate::output::show_done;
use crate::raw;
use crate::terminal;
use bytes::Bytes;
use cli::Group;
use client::Get;
use proto::authpb::{Permission, UserAddOptions, permission::Type};
use proto::etcdserverpb::{
    AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGetRequest,
    AuthRoleGrantPermissionRequest, AuthRoleListRequest, AuthRoleRevokePermissionRequest, AuthStatusRequest,
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGetRequest,
    AuthUserGrantRoleRequest, AuthUserListRequest, AuthUserRevokeRoleRequest, RangeRequest,
};

const fn plain(name: &'static str, usage: &'static str, about: &'static str, example: &'static str) -> Command {
    Command { name, usage, about, example, ..Command::NONE }
}

pub const AUTH: Command = Command {
    name: "auth",
    group: Group::Auth,
    about: "Enable or disable authentication",
    commands: &[
        Command {
            run: Some(enable),
            ..plain("enable", "", "Enables authentication", "etcdctl user add root\netcdctl auth enable")
        },
        Command {
            run: Some(disable),
            ..plain("disable", "", "Disables authentication", "etcdctl --user root auth disable")
        },
        Command { run: Some(status), ..plain("status", "", "Returns authentication status", "etcdctl auth status") },
    ],
    ..Command::NONE
};

fn no_arguments(call: &Call, name: &str) -> Result<(), Failure> {
    if call.parsed.args.is_empty() {
        return Ok(());
    }
    Err(Failure::arguments(format!("auth {name} command does not accept any arguments")))
}

fn enable(call: &Call) -> Result<(), Failure> {
    no_arguments(call, "enable")?;
    let printer = call.printer()?;
    call.block_on(async {
        let client = call.patient_client().await?;
        let answer = loop {
            match client.auth_enable(AuthEnableRequest {}).await {
                Ok(answer) => break answer,
                // Root must have its role before everybody needs one.
                Err(error) if error.is("etcdserver: root user does not have root role") => {
                    match client.role_add(AuthRoleAddRequest { name: "root".to_owned() }).await {
                        Err(error) if !error.is("etcdserver: role name already exists") => return Err(error.into()),
                        Ok(_) | Err(_) => {}
                    }
                    let request = AuthUserGrantRoleRequest { user: "root".to_owned(), role: "root".to_owned() };
                    client.user_grant_role(request).await?;
                }
                Err(error) => return Err(error.into()),
            }
        };
        show_done!(printer, answer, "Authentication Enabled")
    })
}

fn disable(call: &Call) -> Result<(), Failure> {
    no_arguments(call, "disable")?;
    call.block_on(async {
        let answer = call.patient_client().await?.auth_disable(AuthDisableRequest {}).await?;
        show_done!(call.printer()?, answer, "Authentication Disabled")
    })
}

fn status(call: &Call) -> Result<(), Failure> {
    no_arguments(call, "status")?;
    call.block_on(async {
        call.printer()?.show(&call.patient_client().await?.auth_status(AuthStatusRequest {}).await?)
    })
}

const INTERACTIVE: Flag = Flag {
    name: "interactive",
    short: None,
    kind: Kind::Switch,
    default: "true",
    help: "Ask for the password on the terminal; else read it from stdin.",
};

pub const USER: Command = Command {
    name: "user",
    group: Group::Auth,
    about: "User related commands",
    commands: &[
        Command {
            run: Some(user_add),
            flags: &[
                INTERACTIVE,
                text("new-user-password", "", "Password of the new user."),
                switch("no-password", "The user has no password and is known by its certificate."),
            ],
            ..plain("add", "<user name or user:password> [options]", "Adds a new user", "etcdctl user add alice")
        },
        Command {
            run: Some(user_delete),
            ..plain("delete", "<user name>", "Deletes a user", "etcdctl user delete alice")
        },
        Command {
            run: Some(user_get),
            flags: &[switch("detail", "Show what the user's roles may do.")],
            ..plain(
                "get",
                "<user name> [options]",
                "Gets detailed information of a user",
                "etcdctl user get --detail alice",
            )
        },
        Command { run: Some(user_list), ..plain("list", "", "Lists all users", "etcdctl user list") },
        Command {
            run: Some(user_passwd),
            flags: &[INTERACTIVE],
            ..plain("passwd", "<user name> [options]", "Changes password of user", "etcdctl user passwd alice")
        },
        Command {
            run: Some(user_grant),
            ..plain(
                "grant-role",
                "<user name> <role name>",
                "Grants a role to a user",
                "etcdctl user grant-role alice reader",
            )
        },
        Command {
            run: Some(user_revoke),
            ..plain(
                "revoke-role",
                "<user name> <role name>",
                "Revokes a role from a user",
                "etcdctl user revoke-role alice reader",
            )
        },
    ],
    ..Command::NONE
};

/// Asks for a password twice, or takes one word from stdin.
fn new_password(call: &Call, user: &str) -> Result<String, Failure> {
    let failed = |error: std::io::Error| Failure::new(exit::IO, error);
    if !call.parsed.is("interactive") {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).map_err(failed)?;
        let word = line.split_whitespace().next().map(str::to_owned);
        return word.ok_or_else(|| Failure::arguments("unexpected newline"));
    }
    let password = terminal::ask_password(&format!("Password of {user}: ")).map_err(failed)?;
    if password.is_empty() {
        return Err(Failure::arguments("empty password"));
    }
    let again = terminal::ask_password(&format!("Type password of {user} again for confirmation: ")).map_err(failed)?;
    if password != again {
        return Err(Failure::arguments("given passwords are different"));
    }
    Ok(password)
}

fn user_add(call: &Call) -> Result<(), Failure> {
    let [user] = call.args()[..] else {
        return Err(Failure::arguments("user add command requires user name as its argument"));
    };
    let no_password = call.parsed.is("no-password");
    let given = call.parsed.text("new-user-password");
    let (name, password) = if no_password {
        (user, String::new())
    } else if !given.is_empty() {
        (user, given.to_owned())
    } else if let Some((name, password)) = user.split_once(':') {
        (name, password.to_owned())
    } else {
        (user, new_password(call, user)?)
    };
    if name.is_empty() {
        return Err(Failure::arguments("empty user name is not allowed"));
    }
    call.block_on(async {
        let request = AuthUserAddRequest {
            name: name.to_owned(),
            password,
            options: Some(UserAddOptions { no_password }),
            ..Default::default()
        };
        let answer = call.patient_client().await?.user_add(request).await?;
        show_done!(call.printer()?, answer, "User {name} created")
    })
}

fn user_delete(call: &Call) -> Result<(), Failure> {
    let [name] = call.args()[..] else {
        return Err(Failure::arguments("user delete command requires user name as its argument"));
    };
    call.block_on(async {
        let request = AuthUserDeleteRequest { name: name.to_owned() };
        let answer = call.patient_client().await?.user_delete(request).await?;
        show_done!(call.printer()?, answer, "User {name} deleted")
    })
}

fn user_get(call: &Call) -> Result<(), Failure> {
    let [name] = call.args()[..] else {
        return Err(Failure::arguments("user get command requires user name as its argument"));
    };
    let printer = call.printer()?;
    call.block_on(async {
        let client = call.patient_client().await?;
        let answer = client.user_get(AuthUserGetRequest { name: name.to_owned() }).await?;
        if !call.parsed.is("detail") {
            return printer.show(&User { name, answer: &answer });
        }
        terminal::say(&format!("User: {name}"));
        for role in &answer.roles {
            terminal::say("");
            let answer = client.role_get(AuthRoleGetRequest { role: role.clone() }).await?;
            printer.show(&Role { name: role, answer: &answer })?;
        }
        Ok(())
    })
}

fn user_list(call: &Call) -> Result<(), Failure> {
    if !call.parsed.args.is_empty() {
        return Err(Failure::arguments("user list command requires no arguments"));
    }
    call.block_on(async {
        call.printer()?.show(&call.patient_client().await?.user_list(AuthUserListRequest {}).await?)
    })
}

fn user_passwd(call: &Call) -> Result<(), Failure> {
    let [name] = call.args()[..] else {
        return Err(Failure::arguments("user passwd command requires user name as its argument"));
    };
    let password = new_password(call, name)?;
    call.block_on(async {
        let request = AuthUserChangePasswordRequest { name: name.to_owned(), password, ..Default::default() };
        let answer = call.patient_client().await?.user_change_password(request).await?;
        show_done!(call.printer()?, answer, "Password updated")
    })
}

fn user_grant(call: &Call) -> Result<(), Failure> {
    let [user, role] = call.args()[..] else {
        return Err(Failure::arguments("user grant command requires user name and role name as its argument"));
    };
    call.block_on(async {
        let request = AuthUserGrantRoleRequest { user: user.to_owned(), role: role.to_owned() };
        let answer = call.patient_client().await?.user_grant_role(request).await?;
        show_done!(call.printer()?, answer, "Role {role} is granted to user {user}")
    })
}

fn user_revoke(call: &Call) -> Result<(), Failure> {
    let [user, role] = call.args()[..] else {
        return Err(Failure::arguments("user revoke-role requires user name and role name as its argument"));
    };
    call.block_on(async {
        let request = AuthUserRevokeRoleRequest { name: user.to_owned(), role: role.to_owned() };
        let answer = call.patient_client().await?.user_revoke_role(request).await?;
        show_done!(call.printer()?, answer, "Role {role} is revoked from user {user}")
    })
}

const RANGE_FLAGS: &[Flag] =
    &[switch("prefix", "All keys with this prefix."), switch("from-key", "All keys that are not before this one.")];

pub const ROLE: Command = Command {
    name: "role",
    group: Group::Auth,
    about: "Role related commands",
    commands: &[
        Command { run: Some(role_add), ..plain("add", "<role name>", "Adds a new role", "etcdctl role add reader") },
        Command {
            run: Some(role_delete),
            ..plain("delete", "<role name>", "Deletes a role", "etcdctl role delete reader")
        },
        Command {
            run: Some(role_get),
            ..plain("get", "<role name>", "Gets detailed information of a role", "etcdctl role get reader")
        },
        Command { run: Some(role_list), ..plain("list", "", "Lists all roles", "etcdctl role list") },
        Command {
            run: Some(grant_permission),
            flags: RANGE_FLAGS,
            ..plain(
                "grant-permission",
                "[options] <role name> <permission type> <key> [endkey]",
                "Grants a key to a role",
                "etcdctl role grant-permission --prefix reader read /app/",
            )
        },
        Command {
            run: Some(revoke_permission),
            flags: RANGE_FLAGS,
            ..plain(
                "revoke-permission",
                "<role name> <key> [endkey]",
                "Revokes a key from a role",
                "etcdctl role revoke-permission --prefix reader /app/",
            )
        },
    ],
    ..Command::NONE
};

fn role_add(call: &Call) -> Result<(), Failure> {
    let [role] = call.args()[..] else {
        return Err(Failure::arguments("role add command requires role name as its argument"));
    };
    call.block_on(async {
        let answer = call.patient_client().await?.role_add(AuthRoleAddRequest { name: role.to_owned() }).await?;
        show_done!(call.printer()?, answer, "Role {role} created")
    })
}

fn role_delete(call: &Call) -> Result<(), Failure> {
    let [role] = call.args()[..] else {
        return Err(Failure::arguments("role delete command requires role name as its argument"));
    };
    call.block_on(async {
        let request = AuthRoleDeleteRequest { role: role.to_owned() };
        let answer = call.patient_client().await?.role_delete(request).await?;
        show_done!(call.printer()?, answer, "Role {role} deleted")
    })
}

fn role_get(call: &Call) -> Result<(), Failure> {
    let [role] = call.args()[..] else {
        return Err(Failure::arguments("role get command requires role name as its argument"));
    };
    call.block_on(async {
        let request = AuthRoleGetRequest { role: role.to_owned() };
        let answer = call.patient_client().await?.role_get(request).await?;
        call.printer()?.show(&Role { name: role, answer: &answer })
    })
}

fn role_list(call: &Call) -> Result<(), Failure> {
    if !call.parsed.args.is_empty() {
        return Err(Failure::arguments("role list command requires no arguments"));
    }
    call.block_on(async {
        call.printer()?.show(&call.patient_client().await?.role_list(AuthRoleListRequest {}).await?)
    })
}

/// The keys that `<key> [endkey]` and the flags name.
fn key_range(call: &Call, key: &str, end: Option<&&str>) -> Result<(Bytes, Bytes), Failure> {
    let key = raw::bytes(key);
    let range: RangeRequest = match (call.parsed.is("prefix"), call.parsed.is("from-key"), end) {
        (true, true, _) => return Err(Failure::arguments("--from-key and --prefix flags are mutually exclusive")),
        (true, false, Some(_)) => return Err(Failure::arguments("unexpected endkey argument with --prefix flag")),
        (false, true, Some(_)) => return Err(Failure::arguments("unexpected endkey argument with --from-key flag")),
        (true, false, None) => Get::prefix(key),
        (false, true, None) => Get::from_key(key),
        (false, false, Some(end)) => Get::range(key, raw::bytes(end)),
        (false, false, None) => Get::key(key),
    }
    .into();
    Ok((range.key, range.range_end))
}

fn grant_permission(call: &Call) -> Result<(), Failure> {
    let args = call.args();
    let [role, kind, key, end @ ..] = &args[..] else {
        return Err(Failure::arguments(
            "role grant command requires role name, permission type, and key [endkey] as its argument",
        ));
    };
    let kind = match kind.to_lowercase().as_str() {
        "read" => Type::Read,
        "write" => Type::Write,
        "readwrite" => Type::Readwrite,
        _ => return Err(Failure::arguments(format!("invalid permission type: {kind}"))),
    };
    let (key, range_end) = key_range(call, key, end.first())?;
    call.block_on(async {
        let perm = Permission { perm_type: kind as i32, key, range_end };
        let request = AuthRoleGrantPermissionRequest { name: role.to_string(), perm: Some(perm) };
        let answer = call.patient_client().await?.role_grant_permission(request).await?;
        show_done!(call.printer()?, answer, "Role {role} updated")
    })
}

fn revoke_permission(call: &Call) -> Result<(), Failure> {
    let args = call.args();
    let [role, key, end @ ..] = &args[..] else {
        return Err(Failure::arguments(
            "role revoke-permission command requires role name and key [endkey] as its argument",
        ));
    };
    let (key, range_end) = key_range(call, key, end.first())?;
    let printer = call.printer()?;
    call.block_on(async {
        let kind = if range_end.is_empty() { "key" } else { "range" };
        let keys = range_text(&key, &range_end);
        let request = AuthRoleRevokePermissionRequest { role: role.to_string(), key, range_end };
        let answer = call.patient_client().await?.role_revoke_permission(request).await?;
        show_done!(printer, answer, "Permission of {kind} {keys} is revoked from role {role}")
    })
}
