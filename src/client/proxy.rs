//! The proxy to an API server: `proxy-url` of the kubeconfig, else the environment as Go reads it.

use std::net::IpAddr;

use http::Uri;
use http::uri::Authority;
use ipnet::IpNet;

use super::server_url::{self, ServerUrl};

/// The protocol of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyKind {
    /// HTTP: `CONNECT` for TLS, absolute URLs for plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
    /// SOCKS version 5; the proxy resolves names.
    Socks5,
}

/// A proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Its protocol.
    pub kind: ProxyKind,
    /// Its host and port.
    pub authority: Authority,
    /// User name and password, percent-decoded.
    pub credentials: Option<(String, String)>,
}

impl Proxy {
    /// Parses a proxy's URL.
    ///
    /// # Errors
    /// A scheme other than http, https and socks5; no host.
    pub fn parse(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").ok_or("a proxy URL must begin with http, https or socks5")?;
        let no_host = |why: &dyn std::fmt::Display| format!("{:?} has no valid host: {why}", server_url::redacted(url));
        let (kind, port) = match &*scheme.to_ascii_lowercase() {
            "http" => (ProxyKind::Http, 80),
            "https" => (ProxyKind::Https, 443),
            "socks5" | "socks5h" => (ProxyKind::Socks5, 1080),
            _ => return Err(format!("{:?}: the scheme must be http, https or socks5", server_url::redacted(url))),
        };
        let rest = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, host) = rest.rsplit_once('@').map_or((None, rest), |(user, host)| (Some(user), host));
        let authority: Authority = host.parse().map_err(|error| no_host(&error))?;
        if authority.host().is_empty() {
            return Err("no host".to_owned());
        }
        let authority = match authority.port() {
            Some(_) => authority,
            None => format!("{host}:{port}").parse().map_err(|error| no_host(&error))?,
        };
        let credentials = user.map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            (percent_decode(name), percent_decode(password))
        });
        Ok(Self { kind, authority, credentials })
    }

    /// The proxy that the environment configures for a server, as Go's `http.ProxyFromEnvironment`. `variable` looks up
    /// a variable.
    ///
    /// # Errors
    /// A variable that is not a proxy URL.
    pub fn from_environment(
        server: &ServerUrl,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, String> {
        let either = |name: &'static str| {
            [name.to_owned(), name.to_ascii_lowercase()]
                .into_iter()
                .find_map(|name| Some((variable(&name).filter(|value| !value.is_empty())?, name)))
        };
        let Some((url, name)) = either(if server.tls { "HTTPS_PROXY" } else { "HTTP_PROXY" }) else { return Ok(None) };
        let no_proxy = either("NO_PROXY").map(|(list, _)| list).unwrap_or_default();
        if !is_proxied(server, &no_proxy) {
            return Ok(None);
        }
        let url = if url.contains("://") { url } else { format!("http://{url}") };
        Self::parse(&url).map(Some).map_err(|problem| format!("{name}: {problem}"))
    }

    /// The address to connect to.
    pub fn uri(&self) -> Uri {
        Uri::builder().scheme("http").authority(self.authority.clone()).path_and_query("/").build().unwrap_or_default()
    }
}

/// Whether a server is reached through the environment's proxy: not the local host, and not in `NO_PROXY`.
fn is_proxied(server: &ServerUrl, no_proxy: &str) -> bool {
    let host = server.authority.host().to_ascii_lowercase();
    let host = host.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
    let port = server.authority.port_u16().unwrap_or(if server.tls { 443 } else { 80 });
    let address = server_url::ip(host);
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        return false;
    }
    !no_proxy
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
        .any(|entry| excludes(entry, host, address, port))
}

/// Whether an entry of `NO_PROXY` matches a host: `*`, an address, a network, or a domain, with an optional port.
fn excludes(entry: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    if let Ok(network) = entry.parse::<IpNet>() {
        return address.is_some_and(|address| network.contains(&address));
    }
    let (name, entry_port) = match entry.parse::<IpAddr>() {
        Ok(_) => (entry, None),
        Err(_) => entry.rsplit_once(':').map_or((entry, None), |(name, port)| (name, Some(port))),
    };
    if entry_port.is_some_and(|expected| expected.parse() != Ok(port)) {
        return false;
    }
    if let Some(excluded) = server_url::ip(name) {
        return address == Some(excluded);
    }
    let name = name.to_ascii_lowercase();
    let name = name.strip_prefix('*').unwrap_or(&name);
    match name.strip_prefix('.') {
        Some(domain) => host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')),
        None => host == name || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.')),
    }
}

fn percent_decode(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match digits.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxied(server: &str, variables: &[(&str, &str)]) -> Option<String> {
        let server = ServerUrl::parse(server, false).expect("a server");
        let variable =
            |expected: &str| variables.iter().find(|(name, _)| *name == expected).map(|(_, value)| (*value).to_owned());
        Proxy::from_environment(&server, variable).expect("proxies").map(|proxy| proxy.authority.to_string())
    }

    #[test]
    fn the_environment_is_read_as_go_reads_it() {
        let https = ("HTTPS_PROXY", "proxy:3128");
        assert_eq!(proxied("https://api.example", &[https]).as_deref(), Some("proxy:3128"));
        assert_eq!(proxied("http://api.example", &[https]), None);
        assert_eq!(proxied("http://api.example", &[("http_proxy", "socks5://p")]).as_deref(), Some("p:1080"));
        assert_eq!(
            proxied("https://api.example", &[("HTTPS_PROXY", ""), ("https_proxy", "p:1")]).as_deref(),
            Some("p:1")
        );
        for local in ["https://127.0.0.1:6443", "https://[::1]:6443", "https://localhost:6443"] {
            assert_eq!(proxied(local, &[https]), None, "{local}");
        }
        for (server, list, is_proxied) in [
            ("https://10.96.0.1:443", "10.96.0.0/12", false),
            ("https://10.96.0.1:443", " 10.0.0.1 , 10.96.0.1", false),
            ("https://10.96.0.1:443", "10.96.0.1:6443", true),
            ("https://10.96.0.1:6443", "10.96.0.1:6443", false),
            ("https://[fd00::1]:6443", "fd00::/8", false),
            ("https://[fd00::1]:6443", "fd00::2", true),
            ("https://[fd00::1]:6443", "[fd00::1]:6443", false),
            ("https://api.example.com", "example.com", false),
            ("https://example.com", "example.com", false),
            ("https://example.com", ".example.com", true),
            ("https://api.example.com", "*.example.com", false),
            ("https://badexample.com", "example.com", true),
            ("https://api.example.com", "*", false),
            ("https://api.example.com", "", true),
        ] {
            assert_eq!(proxied(server, &[https, ("NO_PROXY", list)]).is_some(), is_proxied, "{server} {list:?}");
        }
    }

    #[test]
    fn credentials_are_decoded_and_other_schemes_are_refused() {
        let proxy = Proxy::parse("http://me:p%40ss%zz@proxy:3128/x").expect("a proxy");
        assert_eq!(proxy.credentials, Some(("me".to_owned(), "p@ss%zz".to_owned())));
        assert_eq!(proxy.uri().to_string(), "http://proxy:3128/");
        for url in ["ftp://x", "proxy:3128", "http://", "http://:80", ""] {
            assert!(Proxy::parse(url).is_err(), "{url}");
        }
        for url in ["http://me:s3/cret@proxy", "ftp://me:s3/cret@proxy", "me:s3/cret@proxy", "http://me:s3/cret@p q"] {
            let error = Proxy::parse(url).expect_err(url);
            assert!(!error.contains("s3") && !error.contains("cret"), "{error}");
        }
    }
}
