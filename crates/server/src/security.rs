//! TLS of a member: what its flags say, which listeners have it, how it calls others.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use peer::Dialer;
use tls::{Acceptor, Connector, Settings, TlsError, Version};

use crate::config::{Config, Scheme, Tls, TlsVersion, Url, texts};
use crate::listen::{self, Bound, Listener, Purpose, Way};
use crate::run::{StartError, resolve};

/// What is spoken inside TLS on the client port.
const CLIENT_PROTOCOLS: [&str; 2] = ["h2", "http/1.1"];
/// And where there is no gRPC.
const HTTP_PROTOCOLS: [&str; 1] = ["http/1.1"];

/// A member's TLS.
#[derive(Debug)]
pub(crate) struct Security {
    client: Settings,
    peer: Settings,
    /// How members are called.
    pub(crate) dialer: Dialer,
}

impl Security {
    /// Reads what the flags name, and makes what `--auto-tls` and `--peer-auto-tls` want made.
    pub(crate) fn of(config: &Config) -> Result<Self, StartError> {
        let failed = |what: &'static str| move |error: TlsError| StartError::Tls { what, error };
        let fixtures = config.data_dir.join("fixtures");
        let mut peer = settings(config, &config.peer_tls);
        if config.peer_tls.auto {
            let made = automatic("peer", peer, &config.listen_peer_urls, |hosts| {
                let years = config.self_signed_cert_validity_years;
                tls::self_signed(&fixtures.join("peer"), hosts, years, tls::Purpose::Peer)
            });
            peer = made.map_err(failed("failed to get peer self-signed certs"))?;
        }
        let mut client = settings(config, &config.client_tls);
        if config.client_tls.auto {
            let urls = [config.listen_client_urls.as_slice(), &config.listen_client_http_urls].concat();
            let made = automatic("client", client, &urls, |hosts| {
                let years = config.self_signed_cert_validity_years;
                tls::self_signed(&fixtures.join("client"), hosts, years, tls::Purpose::Server)
            });
            client = made.map_err(failed("failed to get client self-signed certs"))?;
        }
        for name in config.cipher_suites.iter().filter(|name| !tls::is_supported(name)) {
            tracing::warn!("cipher-suite" = name.as_str(), "cipher suite is not supported and will not be used");
        }
        let dialer = if peer.is_empty() && peer.trusted_ca_file.is_empty() {
            Dialer::default()
        } else {
            let mut settings = peer.clone();
            if config.discovery.srv.is_empty() || !settings.trusted_ca_file.is_empty() {
                settings.server_name = String::new();
            } else {
                settings.server_name.clone_from(&config.discovery.srv);
            }
            Dialer::new(Connector::new(&settings, &[]).map_err(failed("cannot use the TLS settings for peers"))?)
        };
        Ok(Self { client, peer, dialer })
    }

    /// Binds what serves peers.
    pub(crate) fn bind_peers(&self, config: &Config) -> Result<Vec<peer::Listener>, StartError> {
        let urls = &config.listen_peer_urls;
        tracing::info!("listen-peer-urls" = ?texts(urls), "configuring peer listeners");
        if !self.peer.is_empty() {
            tracing::info!("tls-info" = %self.peer, "cipher-suites" = ?config.cipher_suites, "starting with peer TLS");
        }
        let mut acceptor = None;
        let mut listeners = Vec::new();
        for url in urls {
            if url.scheme() == Scheme::Http {
                ignored(&self.peer, "peer-url", url, "scheme is HTTP", "--peer-client-cert-auth");
            }
            let tls = self.acceptor(
                &self.peer,
                &HTTP_PROTOCOLS,
                !config.peer_tls.skip_client_san_verification,
                url,
                &mut acceptor,
            )?;
            listeners.push(peer::Listener { socket: bind_tcp(url)?, tls });
        }
        Ok(listeners)
    }

    /// Binds what serves clients, and what serves metrics.
    pub(crate) fn bind_clients(&self, config: &Config) -> Result<Vec<Bound>, StartError> {
        let urls = [config.listen_client_urls.as_slice(), &config.listen_client_http_urls].concat();
        tracing::info!("listen-client-urls" = ?texts(&urls), "configuring client listeners");
        let is_split = !config.listen_client_http_urls.is_empty();
        let purpose = if is_split { Purpose::Grpc } else { Purpose::Client };
        let mut bound = self.bind(config, purpose, &CLIENT_PROTOCOLS, &config.listen_client_urls)?;
        bound.extend(self.bind(config, Purpose::Http, &CLIENT_PROTOCOLS, &config.listen_client_http_urls)?);
        bound.extend(self.bind(config, Purpose::Metrics, &HTTP_PROTOCOLS, &config.listen_metrics_urls)?);
        Ok(bound)
    }

    fn bind(
        &self,
        config: &Config,
        purpose: Purpose,
        protocols: &[&str],
        urls: &[Url],
    ) -> Result<Vec<Bound>, StartError> {
        // One address may be listed with and without TLS, and is then told apart by how a client begins.
        let mut by_address: BTreeMap<(bool, &str), Vec<&Url>> = BTreeMap::new();
        for url in urls {
            by_address.entry((url.scheme().is_unix(), url.address())).or_default().push(url);
        }
        // Like peers, scrapers of metrics are held to where they come from; etcd's listener for both is the same.
        let checks_source = purpose == Purpose::Metrics && !config.client_tls.skip_client_san_verification;
        let mut acceptor = None;
        let mut bound = Vec::new();
        for urls in by_address.into_values() {
            let plain = urls.iter().find(|url| !url.scheme().is_secure());
            if let (Some(url), true) = (plain, purpose != Purpose::Metrics) {
                ignored(&self.client, "client-url", url, "scheme is http or unix", "--client-cert-auth");
            }
            let secure = urls.iter().find(|url| url.scheme().is_secure());
            let url = secure.or(plain).expect("an address comes from a URL");
            let tls = self.acceptor(&self.client, protocols, checks_source, url, &mut acceptor)?;
            let way = match (tls, plain) {
                (None, _) => Way::Plain,
                (Some(acceptor), None) => Way::Secure(acceptor),
                (Some(acceptor), Some(_)) => Way::Either(acceptor),
            };
            let listener = if url.scheme().is_unix() {
                let listening = listen::bind_unix(url.address());
                Listener::Unix(listening.map_err(|source| StartError::Listen { url: url.to_string(), source })?)
            } else {
                Listener::Tcp(bind_tcp(url)?)
            };
            bound.push(Bound { listener, purpose, url: url.to_string(), way });
        }
        Ok(bound)
    }

    /// How a proxy of the v2 API reaches members where clients do. Proxies of old were given only what peers use.
    pub(crate) fn connector_of_proxy(&self) -> Result<Connector, TlsError> {
        Connector::new(if self.client.is_empty() { &self.peer } else { &self.client }, &[])
    }

    /// Binds what serves the clients of a proxy.
    pub(crate) fn bind_proxy(&self, config: &Config) -> Result<Vec<Bound>, StartError> {
        self.bind(config, Purpose::Http, &HTTP_PROTOCOLS, &config.listen_client_urls)
    }

    /// What accepts TLS at this URL, made once for all of a kind; none if TLS is not spoken there.
    fn acceptor(
        &self,
        settings: &Settings,
        protocols: &[&str],
        checks_source: bool,
        url: &Url,
        made: &mut Option<Arc<Acceptor>>,
    ) -> Result<Option<Arc<Acceptor>>, StartError> {
        if !url.scheme().is_secure() {
            return Ok(None);
        }
        if let Some(made) = made {
            return Ok(Some(Arc::clone(made)));
        }
        if settings.is_empty() {
            let address = url.address();
            return Err(StartError::Failed(format!(
                "cannot listen on TLS for {address}: KeyFile and CertFile are not presented"
            )));
        }
        let acceptor = Acceptor::new(settings, protocols, checks_source)
            .map_err(|error| StartError::Tls { what: "cannot listen on TLS", error })?;
        Ok(Some(Arc::clone(made.insert(Arc::new(acceptor)))))
    }
}

/// Flags in the form that the crate `tls` takes.
fn settings(config: &Config, tls: &Tls) -> Settings {
    let version = |version| match version {
        TlsVersion::Tls12 => Version::Tls12,
        TlsVersion::Tls13 => Version::Tls13,
    };
    Settings {
        cert_file: tls.cert_file.clone(),
        key_file: tls.key_file.clone(),
        client_cert_file: tls.client_cert_file.clone(),
        client_key_file: tls.client_key_file.clone(),
        trusted_ca_file: tls.trusted_ca_file.clone(),
        client_cert_auth: tls.client_cert_auth,
        crl_file: tls.crl_file.clone(),
        allowed_cns: tls.allowed_cns.clone(),
        allowed_hostnames: tls.allowed_hostnames.clone(),
        cipher_suites: config.cipher_suites.clone(),
        min_version: version(config.tls_min_version),
        max_version: version(config.tls_max_version),
        insecure_skip_verify: false,
        server_name: String::new(),
    }
}

/// Settings with a certificate of this member's own making, unless one is given. As in etcd, nobody is verified then:
/// each member's certificate is signed by itself.
fn automatic(
    kind: &'static str,
    given: Settings,
    urls: &[Url],
    make: impl FnOnce(&[String]) -> Result<(String, String), TlsError>,
) -> Result<Settings, TlsError> {
    if !given.is_empty() {
        tracing::warn!("ignoring {kind} auto TLS since certs given");
        return Ok(given);
    }
    if given.client_cert_auth || !given.trusted_ca_file.is_empty() {
        tracing::warn!("{kind} auto TLS verifies no certificates; ignoring client cert auth and trusted CA");
    }
    let hosts: Vec<String> = urls.iter().map(|url| url.host().to_owned()).collect();
    let (cert, key) = make(&hosts)?;
    Ok(Settings {
        client_cert_file: cert.clone(),
        client_key_file: key.clone(),
        cert_file: cert,
        key_file: key,
        insecure_skip_verify: true,
        cipher_suites: given.cipher_suites,
        min_version: given.min_version,
        max_version: given.max_version,
        ..Settings::default()
    })
}

/// Says that an address without TLS does not use what was given for TLS.
fn ignored(settings: &Settings, field: &'static str, url: &Url, scheme: &str, auth: &str) {
    let say = |what: String| match field {
        "peer-url" => tracing::warn!("peer-url" = %url, "{what}"),
        _ => tracing::warn!("client-url" = %url, "{what}"),
    };
    if !settings.is_empty() {
        say(format!("{scheme} while key and cert files are present; ignoring key and cert files"));
    }
    if settings.client_cert_auth {
        say(format!("{scheme} while {auth} is enabled; ignoring client cert auth for this URL"));
    }
}

/// Binds a TCP address.
pub(crate) fn bind_tcp(url: &Url) -> Result<TcpListener, StartError> {
    let bind = || {
        if url.scheme().is_unix() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "only clients are served on Unix sockets"));
        }
        // With a name that stands for both, IPv4 is what people expect of `localhost`.
        listen::bind(resolve(url.address())?)
    };
    bind().map_err(|source| StartError::Listen { url: url.to_string(), source })
}
