//! What a running command has at hand: its arguments, the client, and where its output goes.

use crate::flags::{self, Flag, Kind, Parsed, switch, text};
use crate::output::Printer;
use crate::terminal;
use cli::Format;
pub use cli::{Failure, exit};
use client::{Client, Config, Credentials, Tls};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How the command ends without a client.
fn failed(error: client::Error) -> Failure {
    let code = match error {
        client::Error::NoEndpoints => exit::BAD_CONNECTION,
        client::Error::Tls(_) => exit::BAD_ARGUMENTS,
        _ => exit::ERROR,
    };
    Failure::new(code, error)
}

/// A client error with another exit code.
pub fn with_code(code: u8) -> impl Fn(client::Error) -> Failure {
    move |error| Failure::new(code, error)
}

/// The flags of all commands.
pub const GLOBAL_FLAGS: &[Flag] = &[
    Flag {
        name: "endpoints",
        short: None,
        kind: Kind::List,
        default: "127.0.0.1:2379",
        help: "gRPC endpoints, with commas between them.",
    },
    switch("debug", "Show the settings, and where they could come from, on stderr."),
    text("write-out", "simple", "Output format: fields, json, protobuf, simple or table.").or('w'),
    switch("hex", "Print byte strings as hexadecimal digits."),
    flags::duration("dial-timeout", "2s", "How long connecting may take."),
    flags::duration("command-timeout", "5s", "How long a short command may take, without connecting."),
    flags::duration("keepalive-time", "2s", "After how much silence a connection is pinged."),
    flags::duration("keepalive-timeout", "6s", "How long a ping may stay unanswered."),
    flags::number("max-request-bytes", "0", "Largest request to send, in bytes; 0 is 2 MiB."),
    flags::number("max-recv-bytes", "0", "Largest answer to take, in bytes; 0 is 2 GiB."),
    Flag {
        name: "insecure-transport",
        short: None,
        kind: Kind::Switch,
        default: "true",
        help: "Speak plain text to endpoints that do not say https.",
    },
    Flag {
        name: "insecure-discovery",
        short: None,
        kind: Kind::Switch,
        default: "true",
        help: "Accept SRV records of endpoints without TLS.",
    },
    switch("insecure-skip-tls-verify", "Do not check the server's certificate (only for tests)."),
    text("cert", "", "File with this client's certificate."),
    text("key", "", "File with the key of that certificate."),
    text("cacert", "", "File with the certificates that servers are checked against."),
    text("auth-jwt-token", "", "Token to use instead of user and password."),
    text("user", "", "username[:password]; asks for a password that is not given."),
    text("password", "", "Password of the user; then --user is only the name."),
    text("discovery-srv", "", "Domain whose SRV records name the endpoints.").or('d'),
    text("discovery-srv-name", "", "Suffix of the service's name in those records."),
];

/// Variables with the tool's prefix that are no flags.
const OTHER_VARIABLES: [&str; 3] = ["ETCDCTL_API", "ETCDCTL_WATCH_KEY", "ETCDCTL_WATCH_RANGE_END"];

/// A running command.
pub struct Call {
    /// Flags and arguments.
    pub parsed: Parsed,
    environment: BTreeMap<String, String>,
}

impl Call {
    /// A call with what was typed and what the environment says.
    pub fn new(parsed: Parsed, environment: BTreeMap<String, String>) -> Self {
        Call { parsed, environment }
    }

    /// The arguments.
    pub fn args(&self) -> Vec<&str> {
        self.parsed.args.iter().map(String::as_str).collect()
    }

    /// A variable of the environment; empty is unset.
    pub fn variable(&self, name: &str) -> &str {
        self.environment.get(name).map_or("", String::as_str)
    }

    /// Takes global flags that were not typed from the environment.
    ///
    /// A flag that is given in both places is refused: one of them would be forgotten.
    pub fn take_environment(&mut self) -> Result<(), Failure> {
        for flag in GLOBAL_FLAGS {
            let variable = format!("ETCDCTL_{}", flag.name.to_uppercase().replace('-', "_"));
            let Some(value) = self.environment.get(&variable).filter(|value| !value.is_empty()) else { continue };
            if self.parsed.has(flag.name) {
                let text = "conflicting environment variable is shadowed by corresponding command-line flag \
                            (either unset environment variable or disable flag)";
                terminal::log("fatal", text, &[("environment-variable", &variable)]);
                return Err(Failure::silent(exit::ERROR));
            }
            match flag.read(value) {
                Ok(value) => self.parsed.preset(flag, value),
                Err(reason) => {
                    let fields = [("environment-variable", variable.as_str()), ("error", &reason)];
                    terminal::log("warn", "ignoring an environment variable that makes no sense", &fields);
                }
            }
        }
        let known: BTreeSet<String> =
            GLOBAL_FLAGS.iter().map(|flag| format!("ETCDCTL_{}", flag.name.to_uppercase().replace('-', "_"))).collect();
        for (name, value) in &self.environment {
            if name.starts_with("ETCDCTL_") && !known.contains(name) && !OTHER_VARIABLES.contains(&name.as_str()) {
                let pair = format!("{name}={value}");
                terminal::log("warn", "unrecognized environment variable", &[("environment-variable", &pair)]);
            }
        }
        Ok(())
    }

    /// What `--debug` shows: every setting in the form of its variable.
    pub fn show_settings(&self) {
        for flag in GLOBAL_FLAGS {
            let value = match flag.kind {
                Kind::Switch => self.parsed.is(flag.name).to_string(),
                Kind::Number => self.parsed.number(flag.name).to_string(),
                Kind::Unsigned => self.parsed.unsigned(flag.name).to_string(),
                Kind::Duration => crate::go::duration(self.parsed.duration(flag.name)),
                Kind::List => format!("[{}]", self.parsed.list(flag.name).join(",")),
                Kind::Text if flag.name == "password" => "*".repeat(self.parsed.text(flag.name).len()),
                Kind::Text => self.parsed.text(flag.name).to_owned(),
            };
            eprintln!("ETCDCTL_{}={value}", flag.name.to_uppercase().replace('-', "_"));
        }
    }

    /// Runs asynchronous work on this thread.
    pub fn block_on<T>(&self, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(|error| Failure::new(exit::IO, error))?.block_on(work)
    }

    /// Where output goes.
    pub fn printer(&self) -> Result<Printer, Failure> {
        let format = Format::named(self.parsed.text("write-out"))
            .ok_or_else(|| Failure::new(exit::BAD_FEATURE, "unsupported output format"))?;
        Ok(Printer { format, hex: self.parsed.is("hex") })
    }

    /// The client's settings for the configured endpoints.
    fn config(&self) -> Result<Config, Failure> {
        let flags = &self.parsed;
        for name in ["cert", "key", "cacert"] {
            if flags.has(name) && flags.text(name).is_empty() {
                return Err(Failure::arguments(format!("empty string is passed to --{name} option")));
            }
        }
        let bytes = |name, default| usize::try_from(flags.number(name)).ok().filter(|n| *n > 0).unwrap_or(default);
        let config = Config::for_endpoints(self.endpoints()?);
        Ok(Config {
            tls: self.tls(&config.endpoints),
            dial_timeout: flags.duration("dial-timeout"),
            keep_alive_time: flags.duration("keepalive-time"),
            keep_alive_timeout: flags.duration("keepalive-timeout"),
            max_request_bytes: bytes("max-request-bytes", config.max_request_bytes),
            max_response_bytes: bytes("max-recv-bytes", config.max_response_bytes),
            credentials: self.credentials()?,
            token: Some(flags.text("auth-jwt-token").to_owned()).filter(|token| !token.is_empty()),
            on_trouble: Some(tell_once()),
            ..config
        })
    }

    /// TLS towards these endpoints.
    ///
    /// etcd heeds `--insecure-skip-tls-verify` only beside another flag for TLS; here an `https` endpoint is enough.
    fn tls(&self, endpoints: &[String]) -> Option<Tls> {
        let flags = &self.parsed;
        let server_name = if flags.is("insecure-discovery") { "" } else { flags.text("discovery-srv") };
        let insecure_skip_verify = flags.is("insecure-skip-tls-verify");
        let tls = Tls { server_name: server_name.to_owned(), insecure_skip_verify, ..tls_files(flags, "") };
        let is_wanted = tls != Tls { insecure_skip_verify, ..Tls::default() } || !flags.is("insecure-transport");
        let is_secure = |endpoint: &String| endpoint.starts_with("https:") || endpoint.starts_with("unixs:");
        (is_wanted || insecure_skip_verify && endpoints.iter().any(is_secure)).then_some(tls)
    }

    /// The configured endpoints.
    pub fn endpoints(&self) -> Result<Vec<String>, Failure> {
        let domain = self.parsed.text("discovery-srv");
        if !domain.is_empty() {
            let secure_only = !self.parsed.is("insecure-discovery");
            let found = srv::client_endpoints(domain, self.parsed.text("discovery-srv-name"), secure_only);
            let url = |found: &srv::Endpoint| format!("{}://{}", found.scheme, found.target.address());
            return found
                .map(|found| found.iter().map(url).collect())
                .map_err(|reason| Failure::new(exit::ERROR, reason));
        }
        let endpoints = self.parsed.list("endpoints");
        Ok(endpoints.iter().map(|endpoint| endpoint.trim().to_owned()).collect())
    }

    fn credentials(&self) -> Result<Option<Credentials>, Failure> {
        read_credentials(self.parsed.text("user"), self.parsed.text("password"))
    }

    /// A client of the configured endpoints, logged in, whose calls take no longer than `--command-timeout`.
    pub async fn client(&self) -> Result<Client, Failure> {
        self.printer()?;
        let client =
            Client::new(self.config()?).map_err(failed)?.with_timeout(Some(self.parsed.duration("command-timeout")));
        client.log_in().await.map_err(with_code(exit::BAD_CONNECTION))?;
        Ok(client)
    }

    /// The same without a timeout, for commands that may take their time.
    pub async fn patient_client(&self) -> Result<Client, Failure> {
        Ok(self.client().await?.with_timeout(None))
    }

    /// A client of another cluster: the settings of this one, with what `change` makes of them.
    pub async fn client_of(&self, change: impl FnOnce(Config) -> Config) -> Result<Client, Failure> {
        let config = change(Config { credentials: None, token: None, ..self.config()? });
        let client = Client::new(config).map_err(failed)?.with_timeout(Some(self.parsed.duration("command-timeout")));
        client.log_in().await.map_err(with_code(exit::BAD_CONNECTION))?;
        Ok(client.with_timeout(None))
    }

    /// `--command-timeout`, if it was typed.
    pub fn typed_timeout(&self) -> Option<Duration> {
        self.parsed.has("command-timeout").then(|| self.parsed.duration("command-timeout"))
    }
}

/// The files that the flags for TLS name, which begin with `prefix`.
pub fn tls_files(flags: &Parsed, prefix: &str) -> Tls {
    let file = |name| flags.text(&format!("{prefix}{name}")).to_owned();
    Tls { cacert: file("cacert"), cert: file("cert"), key: file("key"), ..Tls::default() }
}

/// `name[:password]` and perhaps a password of its own; asks for one that is missing.
pub fn read_credentials(user: &str, password: &str) -> Result<Option<Credentials>, Failure> {
    if user.is_empty() {
        return Ok(None);
    }
    let (name, password) = if !password.is_empty() {
        (user, password.to_owned())
    } else if let Some((name, password)) = user.split_once(':') {
        (name, password.to_owned())
    } else {
        (user, terminal::ask_password("Password: ").map_err(|error| Failure::new(exit::IO, error))?)
    };
    if name.is_empty() {
        return Err(Failure::arguments("user name is empty"));
    }
    Ok(Some(Credentials { name: name.to_owned(), password }))
}

/// Warns about an endpoint that cannot be reached, once per reason.
fn tell_once() -> client::OnTrouble {
    let told = Mutex::new(BTreeSet::new());
    Arc::new(move |endpoint, reason| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.insert((endpoint.to_owned(), reason.to_owned())) {
            terminal::log("warn", "cannot reach endpoint", &[("endpoint", endpoint), ("error", reason)]);
        }
    })
}
