//! How messages print that hold a password, its hash or a token: without it. Requests get into logs and into the texts of
//! failures in ways that nobody foresees (CVE-2021-28235), so this is not left to whoever prints.

use std::fmt;

use crate::{authpb, etcdserverpb as pb};

/// Stands for a secret; tells only whether there is one.
struct Secret(bool);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "<secret>" } else { "<none>" })
    }
}

macro_rules! debug_without_secrets {
    ($( $message:ty { $($shown:ident),* } hides { $($hidden:ident),* } )*) => {
        $(
            impl fmt::Debug for $message {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.debug_struct(stringify!($message))
                        $( .field(stringify!($shown), &self.$shown) )*
                        $( .field(stringify!($hidden), &Secret(!self.$hidden.is_empty())) )*
                        .finish()
                }
            }
        )*
    };
}

debug_without_secrets! {
    pb::AuthenticateRequest { name } hides { password }
    pb::AuthenticateResponse { header } hides { token }
    pb::AuthUserAddRequest { name, options } hides { password, hashed_password }
    pb::AuthUserChangePasswordRequest { name } hides { password, hashed_password }
    pb::InternalAuthenticateRequest { name } hides { password, simple_token }
    authpb::User { name, roles, options } hides { password }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CVE-2021-28235: passwords were shown at debug level.
    #[test]
    fn what_is_printed_of_a_request_never_holds_a_secret() {
        let secret = || "hunter2".to_string();
        let printed = [
            format!("{:?}", pb::AuthenticateRequest { name: "alice".into(), password: secret() }),
            format!("{:?}", pb::AuthenticateResponse { header: None, token: secret() }),
            format!("{:?}", authpb::User { password: secret().into(), ..Default::default() }),
            format!(
                "{:#?}",
                pb::InternalRaftRequest {
                    authenticate: Some(pb::InternalAuthenticateRequest {
                        name: "alice".into(),
                        password: secret(),
                        simple_token: secret(),
                    }),
                    auth_user_add: Some(pb::AuthUserAddRequest {
                        name: "alice".into(),
                        password: secret(),
                        hashed_password: secret(),
                        options: None,
                    }),
                    auth_user_change_password: Some(pb::AuthUserChangePasswordRequest {
                        name: "alice".into(),
                        password: secret(),
                        hashed_password: secret(),
                    }),
                    ..Default::default()
                }
            ),
        ];
        for text in printed {
            assert!(!text.contains("hunter2"), "{text}");
            assert!(text.contains("<secret>"), "{text}");
        }
    }
}
