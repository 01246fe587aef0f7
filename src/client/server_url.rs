//! The URL of an API server, in the forms that client-go accepts.

use std::net::IpAddr;

use http::Uri;
use http::uri::{Authority, PathAndQuery, Scheme};

/// The URL of an API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl {
    /// Whether it uses TLS.
    pub tls: bool,
    /// Host and optional port.
    pub authority: Authority,
    /// The prefix of every path: empty, or `/prefix` without a trailing slash.
    pub prefix: String,
}

impl ServerUrl {
    /// Parses a URL or, as client-go's `DefaultServerURL`, `host` or `host:port`, with TLS if `tls`.
    ///
    /// # Errors
    /// Any other text. The message quotes it.
    pub fn parse(text: &str, tls: bool) -> Result<Self, String> {
        let invalid = |why: &str| format!("{:?} is not an API server URL: {why}", redacted(text));
        if text.is_empty() {
            return Err("it is empty".to_owned());
        }
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (scheme.to_ascii_lowercase(), rest),
            None => (if tls { "https" } else { "http" }.to_owned(), text),
        };
        if !matches!(&*scheme, "http" | "https") {
            return Err(invalid("the scheme is neither https nor http"));
        }
        // client-go drops a query and a fragment.
        let rest = rest.split(['?', '#']).next().unwrap_or_default();
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if authority.is_empty() {
            return Err(invalid("there is no host"));
        }
        if authority.contains('@') {
            return Err(invalid("user names belong in the kubeconfig's users"));
        }
        let authority: Authority =
            authority.parse().map_err(|error: http::uri::InvalidUri| invalid(&error.to_string()))?;
        if authority.host().is_empty() {
            return Err(invalid("there is no host"));
        }
        let port = authority.as_str()[authority.host().len()..].strip_prefix(':');
        if port.is_some_and(|port| !port.is_empty() && port.parse::<u16>().is_err()) {
            return Err(invalid("the port is not a number from 0 to 65535"));
        }
        let prefix = path.trim_end_matches('/').to_owned();
        if !text.contains("://") && !prefix.is_empty() {
            return Err(invalid("a path needs a scheme before it"));
        }
        PathAndQuery::try_from(format!("{prefix}/")).map_err(|error| invalid(&error.to_string()))?;
        Ok(Self { tls: scheme == "https", authority, prefix })
    }

    /// The URL of a resource on the server. `path_and_query` begins with a slash.
    ///
    /// # Errors
    /// Invalid characters.
    pub fn uri(&self, path_and_query: &str) -> Result<Uri, http::Error> {
        let scheme = if self.tls { Scheme::HTTPS } else { Scheme::HTTP };
        let path = format!("{}{path_and_query}", self.prefix);
        Uri::builder().scheme(scheme).authority(self.authority.clone()).path_and_query(path).build()
    }
}

impl std::fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}{}", if self.tls { "https" } else { "http" }, self.authority, self.prefix)
    }
}

/// A URL for messages, with `***` from its scheme to the last `@`, since a password that is not percent-encoded may
/// contain any separator.
pub fn redacted(url: &str) -> String {
    let start = url.find("://").map_or(0, |at| at + 3);
    match url[start..].rfind('@') {
        Some(at) => format!("{}***{}", &url[..start], &url[start + at..]),
        None => url.to_owned(),
    }
}

/// Parses the host of a URL as an IP address, IPv6 with or without brackets.
pub fn ip(host: &str) -> Option<IpAddr> {
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_client_go_reads_them() {
        for (text, tls, url) in [
            ("https://10.0.0.1:6443", false, "https://10.0.0.1:6443"),
            ("HTTPS://[::1]:6443/", false, "https://[::1]:6443"),
            ("https://rancher/k8s/clusters/c-1", false, "https://rancher/k8s/clusters/c-1"),
            ("https://rancher/k8s/clusters/c-1/?x#y", false, "https://rancher/k8s/clusters/c-1"),
            ("127.0.0.1:8080", false, "http://127.0.0.1:8080"),
            ("10.0.0.1", true, "https://10.0.0.1"),
            ("localhost:8080/", false, "http://localhost:8080"),
            ("[fd00::1]:6443", true, "https://[fd00::1]:6443"),
        ] {
            assert_eq!(ServerUrl::parse(text, tls).map(|url| url.to_string()).as_deref(), Ok(url), "{text}");
        }
    }

    #[test]
    fn anything_else_is_quoted_in_an_error() {
        let bad = [
            "",
            "https://",
            "https:///x",
            "ftp://x",
            "unix:///x",
            "https://127.0.0.1:6443 ",
            " ",
            "a b",
            "host/path",
            "https://u:p@host",
            "https://:6443",
            "https://h:99999",
            "https://[::1",
            "https://h/a b",
        ];
        for text in bad {
            let error = ServerUrl::parse(text, false).expect_err(text);
            assert!(text.is_empty() || error.contains(&format!("{:?}", redacted(text))), "{error}");
        }
    }

    #[test]
    fn urls_with_passwords_are_redacted_in_messages() {
        for (url, shown) in [
            ("http://user:pw@127.0.0.1:1", "http://***@127.0.0.1:1"),
            ("user:pw@host", "***@host"),
            ("http://user:p/w@x@host/path", "http://***@host/path"),
            ("https://[::1]:6443/x", "https://[::1]:6443/x"),
        ] {
            assert_eq!(redacted(url), shown);
            let error = ServerUrl::parse(url, false).err().unwrap_or_default();
            assert!(!error.contains("pw") && !error.contains("p/w"), "{error}");
        }
    }

    #[test]
    fn paths_follow_the_prefix() {
        let url = ServerUrl::parse("https://h:1/a/", false).expect("a URL");
        assert_eq!(
            url.uri("/api/v1/nodes?watch=1").map(|uri| uri.to_string()).ok().as_deref(),
            Some("https://h:1/a/api/v1/nodes?watch=1")
        );
    }
}
