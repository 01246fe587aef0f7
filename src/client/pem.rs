//! Certificates and keys in PEM, parsed as Go's `crypto/x509` and `crypto/tls` do.

use std::fmt;
use std::path::PathBuf;

use openssl::pkey::{PKey, Private};
use openssl::x509::X509;

/// PEM text, from a file or from the kubeconfig itself.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// A file, which may be replaced at any time.
    File(PathBuf),
    /// From the kubeconfig or an exec plugin: the text, and the name of the field for messages.
    Inline(Vec<u8>, String),
}

impl Pem {
    /// The current text.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self) -> Result<Vec<u8>, String> {
        match self {
            Self::File(path) => std::fs::read(path).map_err(|error| format!("{self}: {error}")),
            Self::Inline(text, _) => Ok(text.clone()),
        }
    }
}

/// The path of the file or the name of the field.
impl fmt::Display for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Inline(_, field) => f.write_str(field),
        }
    }
}

/// The authorities in a bundle, and the number of certificates that cannot be parsed.
///
/// Go's `AppendCertsFromPEM` skips invalid certificates, comments and other blocks.
///
/// # Errors
/// No valid certificate.
pub fn authorities(text: &[u8]) -> Result<(Vec<X509>, usize), String> {
    let blocks = blocks(text, |label| label == "CERTIFICATE");
    let certificates: Vec<X509> = blocks.iter().filter_map(|block| X509::from_pem(block).ok()).collect();
    match (certificates.len(), blocks.len()) {
        (0, 0) => Err("there is no PEM certificate in it".to_owned()),
        (0, _) => Err("no certificate in it can be parsed".to_owned()),
        (valid, all) => Ok((certificates, all - valid)),
    }
}

/// A client certificate with its chain and its private key.
pub struct Identity {
    /// The certificate, then its intermediates.
    pub chain: Vec<X509>,
    /// Its private key.
    pub key: PKey<Private>,
}

impl Identity {
    /// Parses the pair, as Go's `X509KeyPair`: other blocks are skipped; both may be in one file.
    ///
    /// # Errors
    /// What is invalid, or that the key does not match the certificate.
    pub fn parse((certificate, key): (&Pem, &Pem), certificate_text: &[u8], key_text: &[u8]) -> Result<Self, String> {
        let chain = blocks(certificate_text, |label| label == "CERTIFICATE");
        let chain: Result<Vec<X509>, _> = chain.iter().map(|block| X509::from_pem(block)).collect();
        let chain = chain.map_err(|error| format!("{certificate}: a certificate cannot be parsed: {error}"))?;
        let Some(leaf) = chain.first() else { return Err(format!("{certificate}: there is no PEM certificate in it")) };
        let private = parse_key(key_text).map_err(|problem| format!("{key}: {problem}"))?;
        let public = leaf.public_key().map_err(|error| format!("{certificate}: unknown kind of key: {error}"))?;
        if !public.public_eq(&private) {
            return Err(format!("the key {key} does not belong to the certificate {certificate}"));
        }
        Ok(Self { chain, key: private })
    }
}

fn parse_key(text: &[u8]) -> Result<PKey<Private>, String> {
    let keys = blocks(text, |label| label == "PRIVATE KEY" || label.ends_with(" PRIVATE KEY"));
    let Some(key) = keys.first() else { return Err("there is no PEM private key in it".to_owned()) };
    // OpenSSL would prompt for the passphrase on the terminal.
    let is_encrypted = ["ENCRYPTED PRIVATE KEY", "Proc-Type: 4,ENCRYPTED"];
    if is_encrypted.iter().any(|mark| find(key, mark.as_bytes()).is_some()) {
        return Err("the private key is encrypted; kube-proxy needs one without a passphrase".to_owned());
    }
    PKey::private_key_from_pem(key).map_err(|error| format!("the private key cannot be parsed: {error}"))
}

/// The PEM blocks with accepted labels, each from its first to its last line.
fn blocks(text: &[u8], is_wanted: impl Fn(&str) -> bool) -> Vec<&[u8]> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(start) = find(rest, BEGIN) {
        rest = &rest[start..];
        let label = &rest[BEGIN.len()..];
        let label = find(label, b"-----").and_then(|end| std::str::from_utf8(&label[..end]).ok()).unwrap_or_default();
        let end = format!("-----END {label}-----");
        // A block without an end does not hide the blocks after it.
        let next = find(&rest[BEGIN.len()..], BEGIN).map_or(rest.len(), |at| at + BEGIN.len());
        let length = match find(&rest[..next], end.as_bytes()) {
            Some(at) if is_wanted(label) => {
                found.push(&rest[..at + end.len()]);
                at + end.len()
            }
            _ => next,
        };
        rest = &rest[length..];
    }
    found
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_between_comments_other_blocks_and_broken_ones() {
        let text = b"# comment\n-----BEGIN A-----\r\nx\r\n-----END A-----\n-----BEGIN B-----\nno end\n\
                     -----BEGIN A-----\ny\n-----END A-----\n-----BEGIN A-----\nno end";
        let found: Vec<&str> =
            blocks(text, |label| label == "A").iter().map(|block| std::str::from_utf8(block).expect("text")).collect();
        assert_eq!(found, ["-----BEGIN A-----\r\nx\r\n-----END A-----", "-----BEGIN A-----\ny\n-----END A-----"]);
        assert!(blocks(b"-----BEGIN \xff-----", |_| true).is_empty());
    }

    #[test]
    fn an_encrypted_key_is_refused_without_asking_for_its_passphrase() {
        let key = PKey::from_rsa(openssl::rsa::Rsa::generate(2048).expect("a key")).expect("a key");
        let cipher = openssl::symm::Cipher::aes_128_cbc();
        let pkcs8 = key.private_key_to_pem_pkcs8_passphrase(cipher, b"secret").expect("text");
        let pkcs1 = key.rsa().and_then(|rsa| rsa.private_key_to_pem_passphrase(cipher, b"secret")).expect("text");
        for text in [pkcs8, pkcs1] {
            assert!(parse_key(&text).is_err_and(|error| error.contains("encrypted")));
        }
    }
}
