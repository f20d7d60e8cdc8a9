//! What the loading of a configuration has to tell, kept until there is a logger.

/// Something worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// The member begins with these arguments, the program's own name among them.
    Running(Vec<String>),
    /// A setting came from the environment.
    Environment {
        /// Name of the variable.
        name: String,
        /// Its value.
        value: String,
    },
    /// A variable that looks like ours but means nothing.
    UnknownVariable(String),
    /// `ETCD_VERSION`, which would print the version and end.
    SpecialVariable {
        /// Name of the variable.
        name: String,
        /// Its value.
        value: String,
    },
    /// A config file was read, so nothing else counts.
    FileLoaded {
        /// The file.
        path: String,
    },
    /// A flag of an older etcd that has a successor.
    Replaced {
        /// The flag.
        flag: &'static str,
        /// What to write instead.
        by: &'static str,
    },
    /// A flag of an older etcd that no longer does anything.
    Ignored {
        /// The flag.
        flag: &'static str,
    },
    /// The advertised URLs were completed with this host.
    DefaultHost(String),
    /// This host's address was needed but could not be found.
    NoDefaultHost(String),
    /// One client listener speaks both.
    SinglePort,
    /// The data directory was chosen for want of a flag.
    DefaultDataDir(String),
    /// A cost that bcrypt does not take; the default stands in.
    BcryptCost(u64),
    /// The member is called "default", which makes clusters hard to read.
    DefaultName,
}

impl Notice {
    /// Writes the line.
    pub fn log(&self) {
        match self {
            Notice::Running(args) => tracing::info!(args = ?args, "Running: "),
            Notice::Environment { name, value } => tracing::info!(
                "variable-name" = name.as_str(),
                "variable-value" = value.as_str(),
                "recognized and used environment variable"
            ),
            Notice::UnknownVariable(pair) => {
                tracing::warn!("environment-variable" = pair.as_str(), "unrecognized environment variable");
            }
            Notice::SpecialVariable { name, value } => {
                tracing::warn!(key = name.as_str(), value = value.as_str(), "cannot set special environment variable");
            }
            Notice::FileLoaded { path } => tracing::info!(
                path = path.as_str(),
                "loaded server configuration, other configuration command line flags and environment variables will be \
                 ignored if provided"
            ),
            Notice::Replaced { flag, by } => {
                tracing::warn!(flag = format!("--{flag}"), instead = by, "this flag has been renamed or replaced");
            }
            Notice::Ignored { flag } => {
                tracing::warn!(flag = format!("--{flag}"), "this flag is no longer supported and is ignored");
            }
            Notice::DefaultHost(host) => {
                tracing::info!(host = host.as_str(), "detected default host for advertise");
            }
            Notice::NoDefaultHost(error) => {
                tracing::info!(error = error.as_str(), "failed to detect default host");
            }
            Notice::SinglePort => {
                tracing::warn!("Running http and grpc server on single port. This is not recommended for production.")
            }
            Notice::DefaultDataDir(dir) => {
                tracing::warn!("data-dir" = dir.as_str(), "'data-dir' was empty; using default");
            }
            Notice::BcryptCost(cost) => {
                tracing::warn!("given-cost" = cost, "use default bcrypt cost instead of the invalid given cost");
            }
            Notice::DefaultName => tracing::warn!(
                name = super::DEFAULT_NAME,
                "it isn't recommended to use default name, please set a value for --name. Note that etcd might run into \
                 issue when multiple members have the same default name"
            ),
        }
    }
}
