//! Certificates as found in clusters, including unusual ones.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::ec::{EcGroup, EcKey};
use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Private};
use openssl::rsa::Rsa;
use openssl::x509::extension::{BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectAlternativeName};
use openssl::x509::{X509, X509Builder, X509NameBuilder};

const DAY: i64 = 24 * 3600;

/// The type of a key.
#[derive(Clone, Copy, Debug)]
pub enum Key {
    /// RSA with a number of bits.
    Rsa(u32),
    /// ECDSA on a curve.
    Curve(Nid),
    /// Ed25519.
    Ed25519,
}

/// The fields of a certificate.
#[derive(Clone, Copy, Debug)]
pub struct Profile<'a> {
    /// The common name; the organization is `system:masters`.
    pub name: &'a str,
    /// The key.
    pub key: Key,
    /// X.509 version 1, without extensions.
    pub is_v1: bool,
    /// The value of `CA` in the basic constraints; `None` to omit them.
    pub is_ca: Option<bool>,
    /// The IP addresses in subjectAltName.
    pub addresses: &'a [IpAddr],
    /// The DNS names in subjectAltName.
    pub names: &'a [&'a str],
    /// The extended key usage, if any.
    pub usage: Option<Usage>,
    /// The start and end of validity, in days from now.
    pub days: (i64, i64),
    /// The signature digest, unused by Ed25519.
    pub digest: Digest,
}

/// A key usage.
#[derive(Clone, Copy, Debug)]
pub enum Usage {
    /// TLS servers.
    Server,
    /// TLS clients.
    Client,
    /// The key usage of an authority: `keyCertSign` only.
    SignOnly,
}

/// A signature digest.
#[derive(Clone, Copy, Debug)]
pub enum Digest {
    /// SHA-256.
    Sha256,
    /// SHA-1.
    Sha1,
}

impl<'a> Profile<'a> {
    /// An authority with a P-256 key.
    #[must_use]
    pub fn authority(name: &'a str) -> Self {
        Self {
            name,
            key: Key::Curve(Nid::X9_62_PRIME256V1),
            is_v1: false,
            is_ca: Some(true),
            addresses: &[],
            names: &[],
            usage: None,
            days: (-1, 30),
            digest: Digest::Sha256,
        }
    }

    /// A leaf certificate with a P-256 key and without subjectAltName.
    #[must_use]
    pub fn leaf(name: &'a str) -> Self {
        Self { is_ca: None, ..Self::authority(name) }
    }

    /// A server certificate for 127.0.0.1.
    #[must_use]
    pub fn server(name: &'a str) -> Self {
        const LOCAL: &[IpAddr] = &[IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)];
        Self { addresses: LOCAL, ..Self::leaf(name) }
    }
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Certified {
    /// The certificate.
    pub certificate: X509,
    /// Its key.
    pub key: PKey<Private>,
}

impl Certified {
    /// Creates a certificate, signed by `issuer` or self-signed.
    ///
    /// # Panics
    /// If OpenSSL fails.
    #[must_use]
    pub fn new(profile: &Profile<'_>, issuer: Option<&Self>) -> Self {
        let key = key(profile.key);
        let mut builder = X509Builder::new().expect("a certificate");
        let mut name = X509NameBuilder::new().expect("a name");
        name.append_entry_by_text("O", "system:masters").expect("a name");
        name.append_entry_by_text("CN", profile.name).expect("a name");
        let name = name.build();
        builder.set_subject_name(&name).expect("a subject");
        builder.set_issuer_name(issuer.map_or(&*name, |issuer| issuer.certificate.subject_name())).expect("an issuer");
        builder.set_pubkey(&key).expect("a key");
        let mut serial = BigNum::new().expect("a number");
        serial.rand(64, MsbOption::MAYBE_ZERO, false).expect("a number");
        builder.set_serial_number(&serial.to_asn1_integer().expect("a number")).expect("a serial");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
        let day = |days: i64| {
            Asn1Time::from_unix(i64::try_from(now).expect("before the end of time") + days * DAY).expect("a time")
        };
        builder.set_not_before(&day(profile.days.0)).expect("a time");
        builder.set_not_after(&day(profile.days.1)).expect("a time");
        builder.set_version(if profile.is_v1 { 0 } else { 2 }).expect("a version");
        if !profile.is_v1 {
            extend(&mut builder, profile, issuer);
        }
        let signer = issuer.map_or(&key, |issuer| &issuer.key);
        let digest = match (signer.id(), profile.digest) {
            (Id::ED25519, _) => MessageDigest::null(),
            (_, Digest::Sha1) => MessageDigest::sha1(),
            (_, Digest::Sha256) => MessageDigest::sha256(),
        };
        builder.sign(signer, digest).expect("a signature");
        Self { certificate: builder.build(), key }
    }

    /// The certificate as PEM.
    ///
    /// # Panics
    /// If OpenSSL fails.
    #[must_use]
    pub fn pem(&self) -> String {
        String::from_utf8(self.certificate.to_pem().expect("PEM")).expect("text")
    }

    /// The key as PEM, PKCS#8.
    ///
    /// # Panics
    /// If OpenSSL fails.
    #[must_use]
    pub fn key_pem(&self) -> String {
        String::from_utf8(self.key.private_key_to_pem_pkcs8().expect("PEM")).expect("text")
    }

    /// Writes `NAME.crt` and `NAME.key` into a folder and returns the paths.
    ///
    /// # Panics
    /// If they cannot be written.
    pub fn write(&self, folder: &Path, name: &str) -> (PathBuf, PathBuf) {
        let paths = (folder.join(format!("{name}.crt")), folder.join(format!("{name}.key")));
        replace(&paths.0, &self.pem());
        replace(&paths.1, &self.key_pem());
        paths
    }
}

/// Replaces a file atomically, as the kubelet and cert-manager do.
///
/// # Panics
/// If it cannot be written.
pub fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("a file");
    std::fs::rename(&new, path).expect("a file");
}

fn key(kind: Key) -> PKey<Private> {
    match kind {
        Key::Rsa(bits) => PKey::from_rsa(Rsa::generate(bits).expect("a key")),
        Key::Curve(curve) => {
            let group = EcGroup::from_curve_name(curve).expect("a curve");
            PKey::from_ec_key(EcKey::generate(&group).expect("a key"))
        }
        Key::Ed25519 => PKey::generate_ed25519(),
    }
    .expect("a key")
}

fn extend(builder: &mut X509Builder, profile: &Profile<'_>, issuer: Option<&Certified>) {
    if let Some(is_ca) = profile.is_ca {
        let mut constraints = BasicConstraints::new();
        constraints.critical();
        if is_ca {
            constraints.ca();
        }
        builder.append_extension(constraints.build().expect("constraints")).expect("constraints");
    }
    let usage = match profile.usage {
        None => None,
        Some(Usage::Server) => Some(ExtendedKeyUsage::new().server_auth().build()),
        Some(Usage::Client) => Some(ExtendedKeyUsage::new().client_auth().build()),
        Some(Usage::SignOnly) => Some(KeyUsage::new().critical().key_cert_sign().build()),
    };
    if let Some(usage) = usage {
        builder.append_extension(usage.expect("a usage")).expect("a usage");
    }
    let mut names = SubjectAlternativeName::new();
    profile.addresses.iter().for_each(|address| _ = names.ip(&address.to_string()));
    profile.names.iter().for_each(|name| _ = names.dns(name));
    if !profile.addresses.is_empty() || !profile.names.is_empty() {
        let context = builder.x509v3_context(issuer.map(|issuer| &*issuer.certificate), None);
        let names = names.build(&context).expect("names");
        builder.append_extension(names).expect("names");
    }
}
