//! The methods that exist: path, kind, and the place of each in the counters.

/// How many messages go each way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One request, one response.
    Unary,
    /// One request, many responses.
    ServerStream,
    /// Many of both.
    BidiStream,
}

impl Kind {
    /// The `grpc_type` label.
    pub fn label(self) -> &'static str {
        match self {
            Kind::Unary => "unary",
            Kind::ServerStream => "server_stream",
            Kind::BidiStream => "bidi_stream",
        }
    }
}

macro_rules! methods {
    ($( $variant:ident = $path:literal $kind:ident, )*) => {
        /// A method of one of the services.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum Method { $( $variant, )* }

        impl Method {
            /// All of them; a method's position is `method as usize`.
            pub const ALL: &'static [Method] = &[ $( Method::$variant, )* ];

            /// The method at an HTTP path.
            pub fn from_path(path: &str) -> Option<Method> {
                match path {
                    $( $path => Some(Method::$variant), )*
                    _ => None,
                }
            }

            /// Its HTTP path, `/package.Service/Method`.
            pub fn path(self) -> &'static str {
                match self { $( Method::$variant => $path, )* }
            }

            /// How many messages it takes and gives.
            pub fn kind(self) -> Kind {
                match self { $( Method::$variant => Kind::$kind, )* }
            }
        }
    };
}

methods! {
    Range = "/etcdserverpb.KV/Range" Unary,
    Put = "/etcdserverpb.KV/Put" Unary,
    Txn = "/etcdserverpb.KV/Txn" Unary,
    DeleteRange = "/etcdserverpb.KV/DeleteRange" Unary,
    Compact = "/etcdserverpb.KV/Compact" Unary,
    RangeStream = "/etcdserverpb.KV/RangeStream" ServerStream,
    Watch = "/etcdserverpb.Watch/Watch" BidiStream,
    LeaseGrant = "/etcdserverpb.Lease/LeaseGrant" Unary,
    LeaseRevoke = "/etcdserverpb.Lease/LeaseRevoke" Unary,
    LeaseKeepAlive = "/etcdserverpb.Lease/LeaseKeepAlive" BidiStream,
    LeaseTimeToLive = "/etcdserverpb.Lease/LeaseTimeToLive" Unary,
    LeaseLeases = "/etcdserverpb.Lease/LeaseLeases" Unary,
    MemberAdd = "/etcdserverpb.Cluster/MemberAdd" Unary,
    MemberRemove = "/etcdserverpb.Cluster/MemberRemove" Unary,
    MemberUpdate = "/etcdserverpb.Cluster/MemberUpdate" Unary,
    MemberList = "/etcdserverpb.Cluster/MemberList" Unary,
    MemberPromote = "/etcdserverpb.Cluster/MemberPromote" Unary,
    Alarm = "/etcdserverpb.Maintenance/Alarm" Unary,
    Status = "/etcdserverpb.Maintenance/Status" Unary,
    Defragment = "/etcdserverpb.Maintenance/Defragment" Unary,
    Hash = "/etcdserverpb.Maintenance/Hash" Unary,
    HashKv = "/etcdserverpb.Maintenance/HashKV" Unary,
    Snapshot = "/etcdserverpb.Maintenance/Snapshot" ServerStream,
    MoveLeader = "/etcdserverpb.Maintenance/MoveLeader" Unary,
    Downgrade = "/etcdserverpb.Maintenance/Downgrade" Unary,
    AuthEnable = "/etcdserverpb.Auth/AuthEnable" Unary,
    AuthDisable = "/etcdserverpb.Auth/AuthDisable" Unary,
    AuthStatus = "/etcdserverpb.Auth/AuthStatus" Unary,
    Authenticate = "/etcdserverpb.Auth/Authenticate" Unary,
    UserAdd = "/etcdserverpb.Auth/UserAdd" Unary,
    UserGet = "/etcdserverpb.Auth/UserGet" Unary,
    UserList = "/etcdserverpb.Auth/UserList" Unary,
    UserDelete = "/etcdserverpb.Auth/UserDelete" Unary,
    UserChangePassword = "/etcdserverpb.Auth/UserChangePassword" Unary,
    UserGrantRole = "/etcdserverpb.Auth/UserGrantRole" Unary,
    UserRevokeRole = "/etcdserverpb.Auth/UserRevokeRole" Unary,
    RoleAdd = "/etcdserverpb.Auth/RoleAdd" Unary,
    RoleGet = "/etcdserverpb.Auth/RoleGet" Unary,
    RoleList = "/etcdserverpb.Auth/RoleList" Unary,
    RoleDelete = "/etcdserverpb.Auth/RoleDelete" Unary,
    RoleGrantPermission = "/etcdserverpb.Auth/RoleGrantPermission" Unary,
    RoleRevokePermission = "/etcdserverpb.Auth/RoleRevokePermission" Unary,
    Lock = "/v3lockpb.Lock/Lock" Unary,
    Unlock = "/v3lockpb.Lock/Unlock" Unary,
    Campaign = "/v3electionpb.Election/Campaign" Unary,
    Proclaim = "/v3electionpb.Election/Proclaim" Unary,
    Leader = "/v3electionpb.Election/Leader" Unary,
    Observe = "/v3electionpb.Election/Observe" ServerStream,
    Resign = "/v3electionpb.Election/Resign" Unary,
    HealthCheck = "/grpc.health.v1.Health/Check" Unary,
    HealthList = "/grpc.health.v1.Health/List" Unary,
    HealthWatch = "/grpc.health.v1.Health/Watch" ServerStream,
}

impl Method {
    /// The `grpc_service` label, `package.Service`.
    pub fn service(self) -> &'static str {
        split(self.path()).0
    }

    /// The `grpc_method` label.
    pub fn name(self) -> &'static str {
        split(self.path()).1
    }

    /// Why no method is at `path`, in the words of the original.
    pub fn unknown(path: &str) -> String {
        let Some((service, method)) = path.strip_prefix('/').unwrap_or(path).rsplit_once('/') else {
            return format!("malformed method name: {path:?}");
        };
        if Method::ALL.iter().any(|known| known.service() == service) {
            format!("unknown method {method} for service {service}")
        } else {
            format!("unknown service {service}")
        }
    }

    /// Whether a member without a vote serves it. (A learner also serves serializable ranges; `kv` looks at those.)
    pub fn served_by_learner(self) -> bool {
        matches!(self, Method::Status | Method::Range | Method::Snapshot)
    }
}

fn split(path: &'static str) -> (&'static str, &'static str) {
    path[1..].split_once('/').expect("every path of the table is /service/method")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_is_found_by_its_path() {
        for (position, &method) in Method::ALL.iter().enumerate() {
            assert_eq!(method as usize, position);
            assert_eq!(Method::from_path(method.path()), Some(method));
            assert_eq!(method.path(), format!("/{}/{}", method.service(), method.name()));
        }
    }

    #[test]
    fn an_unknown_path_says_what_is_unknown() {
        assert_eq!(Method::unknown("/etcdserverpb.KV/Nope"), "unknown method Nope for service etcdserverpb.KV");
        assert_eq!(Method::unknown("/foo.Bar/Baz"), "unknown service foo.Bar");
        assert_eq!(Method::unknown("nope"), "malformed method name: \"nope\"");
    }
}
