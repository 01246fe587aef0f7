//! Addresses and networks in kube-proxy's syntax.
//!
//! Leading zeros in IPv4 octets are accepted, and an IPv4-mapped IPv6 address is an IPv4 address.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use proxier::track::{parse_ip, parse_net};

/// Parses an address.
#[must_use]
pub fn ip(text: &str) -> Option<IpAddr> {
    parse_ip(text).map(|ip| ip.to_canonical())
}

/// Parses a network; host bits are cleared.
#[must_use]
pub fn cidr(text: &str) -> Option<IpNet> {
    parse_net(text)
}

/// Splits `IP:port` or `[IP]:port`.
#[must_use]
pub fn host_port(text: &str) -> Option<(&str, &str)> {
    match text.strip_prefix('[') {
        Some(rest) => rest.split_once("]:").filter(|(_, port)| !port.contains(':')),
        None => text.rsplit_once(':').filter(|(host, _)| !host.contains(':')),
    }
}

/// Parses an address and port to listen on.
#[must_use]
pub fn socket(text: &str) -> Option<SocketAddr> {
    let (host, port) = host_port(text)?;
    Some(SocketAddr::new(ip(host)?, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_kube_proxy_reads_them() {
        for (text, read) in [
            ("10.0.0.1", Some("10.0.0.1")),
            ("010.000.0.01", Some("10.0.0.1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("fd00::1", Some("fd00::1")),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10.0.0.256", None),
            ("10.0..1", None),
            ("10.0.0.+1", None),
            (" 10.0.0.1", None),
            ("", None),
        ] {
            assert_eq!(ip(text).map(|ip| ip.to_string()).as_deref(), read, "{text:?}");
        }
        assert_eq!(cidr("010.1.2.3/8").map(|net| net.to_string()).as_deref(), Some("10.0.0.0/8"));
        for text in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/", "x/8", " 10.0.0.0/8"] {
            assert_eq!(cidr(text), None, "{text:?}");
        }
    }

    #[test]
    fn ports_follow_addresses() {
        assert_eq!(host_port("1.2.3.4:80"), Some(("1.2.3.4", "80")));
        assert_eq!(host_port("[::]:80"), Some(("::", "80")));
        assert_eq!(host_port("::1:80"), None);
        assert_eq!(host_port("1.2.3.4"), None);
        assert_eq!(socket("[::1]:80"), Some(SocketAddr::new("::1".parse().expect("an address"), 80)));
    }
}
