//! KubeProxyConfiguration: decoding, defaults, validation and translation.
//!
//! [`read`] decodes a file, [`KubeProxyConfiguration::with_defaults`] completes it, [`validate()`] checks and
//! translates it.

mod check;
pub mod consistency;
mod decode;
mod defaults;
mod dns_label;
pub mod duration;
pub mod file;
pub mod gates;
pub mod label_selector;
pub mod logging;
pub mod net;
pub mod node_ports;
#[cfg(test)]
mod surface;
mod translate;
mod validated;
mod write;

use std::path::PathBuf;

use thiserror::Error;

pub use self::decode::{decode, read};
pub use self::defaults::{CONTENT_TYPE as DEFAULT_CONTENT_TYPE, DISABLED, default_hosts};
pub use self::duration::GoDuration;
pub use self::file::KubeProxyConfiguration;
pub use self::translate::validate;
pub use self::validated::{ClientConfig, ValidatedConfig};
pub use self::write::to_yaml;

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed complete: open {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a KubeProxyConfiguration.
    #[error("failed complete: failed to decode {path}: {reason}")]
    Decode {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// The node name is blank.
    #[error("failed complete: empty hostname-override is invalid")]
    Hostname,
    /// Every invalid value.
    #[error("failed validate: {}", aggregate(.0))]
    Invalid(Vec<String>),
}

/// One error as it is, several in brackets, as Go's `utilerrors.Aggregate`.
fn aggregate(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        all => format!("[{}]", all.join(", ")),
    }
}
