//! TLS with OpenSSL, configured to accept and reject what Go's `crypto/tls` does.

use std::net::IpAddr;
use std::path::Path;

use openssl::error::ErrorStack;
use openssl::ssl::{
    Ssl, SslContext, SslContextBuilder, SslMethod, SslMode, SslSessionCacheMode, SslVerifyMode, SslVersion,
};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::verify::{X509CheckFlags, X509VerifyFlags};

use super::pem::{self, Identity};
use super::server_url;
use super::verify::VerifyFailure;

/// OpenSSL's level 1: RSA keys of at least 1024 bits, no SHA-1 signatures, as in Go.
const SECURITY_LEVEL: u32 = 1;

/// ALPN: HTTP/2, else HTTP/1.1.
const HTTP2_FIRST: &[u8] = b"\x02h2\x08http/1.1";
/// ALPN: HTTP/1.1 alone.
const HTTP1: &[u8] = b"\x08http/1.1";

/// The trusted certificates.
pub enum Trust<'a> {
    /// These authorities, and a server's own certificate among them.
    Authorities(&'a [X509]),
    /// Any certificate.
    Anything,
}

/// Creates the context of new connections.
///
/// # Errors
/// OpenSSL rejects a part, for instance a client key that is too short.
pub fn context(trust: &Trust<'_>, identity: Option<&Identity>, http2: bool) -> Result<SslContext, ErrorStack> {
    let mut builder = SslContextBuilder::new(SslMethod::tls_client())?;
    builder.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    builder.set_security_level(SECURITY_LEVEL);
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_mode(SslMode::AUTO_RETRY | SslMode::ENABLE_PARTIAL_WRITE | SslMode::ACCEPT_MOVING_WRITE_BUFFER);
    // Saves 34 kB per idle connection.
    builder.set_mode(SslMode::RELEASE_BUFFERS);
    builder.set_alpn_protos(if http2 { HTTP2_FIRST } else { HTTP1 })?;
    match trust {
        Trust::Authorities(authorities) => {
            let mut store = X509StoreBuilder::new()?;
            for authority in *authorities {
                store.add_cert(authority.clone())?;
            }
            // Go ends a chain at any certificate of the pool, self-signed or not.
            store.set_flags(X509VerifyFlags::PARTIAL_CHAIN)?;
            builder.set_cert_store(store.build());
            builder.set_verify(SslVerifyMode::PEER);
        }
        Trust::Anything => builder.set_verify(SslVerifyMode::NONE),
    }
    if let Some(Identity { chain, key }) = identity {
        let mut chain = chain.iter();
        if let Some(leaf) = chain.next() {
            builder.set_certificate(leaf)?;
        }
        for certificate in chain {
            builder.add_extra_chain_cert(certificate.clone())?;
        }
        builder.set_private_key(key)?;
    }
    Ok(builder.build())
}

/// Prepares one connection to the server `name`, a DNS name or an IP address.
///
/// # Errors
/// An invalid name.
pub fn session(context: &SslContext, name: &str, verify: Option<(&VerifyFailure, &str)>) -> Result<Ssl, ErrorStack> {
    let mut ssl = Ssl::new(context)?;
    let address: Option<IpAddr> = server_url::ip(name);
    if address.is_none() {
        // Server Name Indication has no addresses (RFC 6066).
        ssl.set_hostname(name)?;
    }
    if let Some((refusal, trust)) = verify {
        let parameters = ssl.param_mut();
        // Names in subjectAltName only, as Go since 1.15.
        parameters.set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS | X509CheckFlags::NEVER_CHECK_SUBJECT);
        match address {
            Some(address) => parameters.set_ip(address)?,
            None => parameters.set_host(name.trim_end_matches('.'))?,
        }
        refusal.watch(&mut ssl, name, trust);
    }
    Ok(ssl)
}

/// The authorities of Linux distributions, in the order of Go's `crypto/x509`.
const SYSTEM_BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The system's authorities and their path: `SSL_CERT_FILE`, or the first bundle that exists.
///
/// # Errors
/// No bundle.
pub fn system_authorities() -> Result<(Vec<X509>, String), String> {
    let given = std::env::var("SSL_CERT_FILE").ok().filter(|path| !path.is_empty());
    let path = given.or_else(|| SYSTEM_BUNDLES.iter().find(|path| Path::new(path).exists()).map(ToString::to_string));
    let path = path.ok_or("no certificate-authority is configured, and this system has no CA bundle")?;
    let text = std::fs::read(&path).map_err(|error| format!("{path}: {error}"))?;
    let (authorities, _) = pem::authorities(&text).map_err(|problem| format!("{path}: {problem}"))?;
    Ok((authorities, path))
}
