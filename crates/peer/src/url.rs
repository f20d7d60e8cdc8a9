//! A peer's addresses, and which of them to try.

use std::cell::{Cell, RefCell};

/// Where a peer listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerUrl {
    /// `https`?
    pub tls: bool,
    /// A name or an address, without brackets.
    pub host: String,
    pub port: u16,
    /// As written: what the `Host` header says.
    pub authority: String,
}

impl PeerUrl {
    /// Parses `http://host:port`, as etcd demands peer URLs to be. `None` if it is not of that form.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let authority = rest.split('/').next()?;
        let (host, port) = authority.rsplit_once(':')?;
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() {
            return None;
        }
        Some(Self { tls, host: host.to_owned(), port: port.parse().ok()?, authority: authority.to_owned() })
    }
}

/// A peer's addresses: one is in use until it fails, then the next one is.
#[derive(Debug, Default)]
pub(crate) struct Picker {
    urls: RefCell<Vec<PeerUrl>>,
    picked: Cell<usize>,
}

impl Picker {
    pub(crate) fn new(id: u64, urls: &[String]) -> Self {
        let picker = Self::default();
        picker.update(id, urls);
        picker
    }

    /// Replaces the addresses. Those that cannot be used are left out, with a warning.
    pub(crate) fn update(&self, id: u64, urls: &[String]) {
        let parsed = urls.iter().filter_map(|url| {
            let parsed = PeerUrl::parse(url);
            if parsed.is_none() {
                tracing::warn!("remote-peer-id" = %format_args!("{id:x}"), url, "cannot use this URL of a peer");
            }
            parsed
        });
        self.urls.replace(parsed.collect());
        self.picked.set(0);
    }

    /// The address to use now.
    pub(crate) fn pick(&self) -> Option<PeerUrl> {
        self.urls.borrow().get(self.picked.get()).cloned()
    }

    /// Every address.
    pub(crate) fn all(&self) -> Vec<PeerUrl> {
        self.urls.borrow().clone()
    }

    /// An address did not work: unless another one was picked meanwhile, the next is tried from now on.
    pub(crate) fn failed(&self, url: &PeerUrl) {
        let urls = self.urls.borrow();
        if urls.get(self.picked.get()) == Some(url) {
            self.picked.set((self.picked.get() + 1) % urls.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_url_has_a_scheme_a_host_and_a_port() {
        let url = PeerUrl::parse("http://192.168.99.100:2380").unwrap();
        assert_eq!((url.tls, url.host.as_str(), url.port), (false, "192.168.99.100", 2380));
        let url = PeerUrl::parse("https://[::1]:2380/").unwrap();
        assert_eq!((url.tls, url.host.as_str(), url.authority.as_str()), (true, "::1", "[::1]:2380"));
        for bad in
            ["", "http://", "127.0.0.1:2380", "http://:2380", "http://a", "http://a:b", "ftp://a:1", "http://a:70000"]
        {
            assert_eq!(PeerUrl::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_address_is_used_until_it_fails() {
        let picker = Picker::new(1, &["http://a:1".into(), "nonsense".into(), "http://b:2".into()]);
        let first = picker.pick().unwrap();
        assert_eq!(picker.pick().as_ref(), Some(&first));
        picker.failed(&first);
        let second = picker.pick().unwrap();
        assert_eq!(second.host, "b");
        picker.failed(&first); // an old failure of the other one says nothing about this one
        assert_eq!(picker.pick().as_ref(), Some(&second));
        picker.failed(&second);
        assert_eq!(picker.pick(), Some(first));
    }
}
