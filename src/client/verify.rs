//! Verifies server certificates and explains refusals.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use openssl::nid::Nid;
use openssl::ssl::{SslRef, SslVerifyMode};
use openssl::x509::{X509ExtendedKeyUsage, X509NameRef, X509Ref, X509StoreContextRef};

/// OpenSSL's `X509_V_ERR_*`, which the crate does not export.
mod code {
    pub const NO_ISSUER: i32 = 2;
    pub const SIGNATURE: i32 = 7;
    pub const NOT_YET_VALID: i32 = 9;
    pub const EXPIRED: i32 = 10;
    pub const SELF_SIGNED: i32 = 18;
    pub const SELF_SIGNED_IN_CHAIN: i32 = 19;
    pub const NO_ISSUER_LOCALLY: i32 = 20;
    pub const NO_FIRST_ISSUER: i32 = 21;
    pub const PURPOSE: i32 = 26;
    pub const HOSTNAME: i32 = 62;
    pub const IP_ADDRESS: i32 = 64;
}

/// Records why the certificate of one connection was refused.
#[derive(Clone, Default)]
pub struct VerifyFailure(Arc<Mutex<Option<String>>>);

impl VerifyFailure {
    /// Verifies the server's certificate. `expected`: the required name; `trust`: where the authorities come from.
    ///
    /// Go checks only the extended key usage of a server's certificate; OpenSSL also refuses a self-signed authority as
    /// a server (`keyCertSign` alone). This accepts it as Go does.
    pub fn watch(&self, ssl: &mut SslRef, expected: &str, trust: &str) {
        let (found, expected, trust) = (self.clone(), expected.to_owned(), trust.to_owned());
        ssl.set_verify_callback(SslVerifyMode::PEER, move |is_valid, chain| {
            if is_valid || (chain.error().as_raw() == code::PURPOSE && chain.error_depth() == 0 && may_serve(chain)) {
                return true;
            }
            let why = describe(chain, &expected, &trust);
            found.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
            false
        });
    }

    /// Why it was refused, if it was.
    pub fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Whether the extended key usage is absent, that of a server, or any.
fn may_serve(chain: &X509StoreContextRef) -> bool {
    let Some(usage) = chain.current_cert().map(X509Ref::extended_key_usage) else { return false };
    usage.is_none_or(|usage| usage.intersects(X509ExtendedKeyUsage::SSL_SERVER | X509ExtendedKeyUsage::ANYEKU))
}

fn describe(chain: &X509StoreContextRef, expected: &str, trust: &str) -> String {
    let error = chain.error();
    let Some(certificate) = chain.current_cert() else { return error.error_string().to_owned() };
    let subject = Name(certificate.subject_name());
    let whose = if chain.error_depth() == 0 { "server's certificate" } else { "authority's certificate" };
    match error.as_raw() {
        code::NO_ISSUER
        | code::SIGNATURE
        | code::SELF_SIGNED
        | code::SELF_SIGNED_IN_CHAIN
        | code::NO_ISSUER_LOCALLY
        | code::NO_FIRST_ISSUER => {
            let issuer = Name(certificate.issuer_name());
            format!("certificate signed by an authority that is not in {trust}: subject {subject}, issuer {issuer}")
        }
        code::EXPIRED => format!("the {whose} ({subject}) expired on {}", certificate.not_after()),
        code::NOT_YET_VALID => format!("the {whose} ({subject}) is not valid before {}", certificate.not_before()),
        code::HOSTNAME | code::IP_ADDRESS => {
            format!("the server's certificate is for {}, not for {expected}", names(certificate))
        }
        _ => format!("the {whose} ({subject}) is refused: {}", error.error_string()),
    }
}

/// The names and addresses of a certificate. The common name does not count, as in Go.
fn names(certificate: &X509Ref) -> String {
    let names = certificate.subject_alt_names().into_iter().flatten();
    let names: Vec<String> = names
        .filter_map(|name| {
            let address = |bytes: &[u8]| match bytes.len() {
                4 => <[u8; 4]>::try_from(bytes).ok().map(|bytes| std::net::Ipv4Addr::from(bytes).to_string()),
                _ => <[u8; 16]>::try_from(bytes).ok().map(|bytes| std::net::Ipv6Addr::from(bytes).to_string()),
            };
            name.dnsname().map(str::to_owned).or_else(|| name.ipaddress().and_then(address))
        })
        .collect();
    if names.is_empty() { "no name at all (no subjectAltName)".to_owned() } else { names.join(", ") }
}

/// A subject or issuer as `O=kubernetes, CN=kube-ca`.
struct Name<'a>(&'a X509NameRef);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut is_first = true;
        for entry in self.0.entries() {
            let nid: Nid = entry.object().nid();
            let (key, value) = (nid.short_name().unwrap_or("?"), entry.data().to_string());
            let value = value.unwrap_or_default();
            write!(f, "{}{key}={}", if is_first { "" } else { ", " }, value.escape_debug())?;
            is_first = false;
        }
        if is_first { f.write_str("without a name") } else { Ok(()) }
    }
}
