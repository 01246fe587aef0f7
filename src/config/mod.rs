//! What kube-proxy is told: KubeProxyConfiguration, turned into values.
//!
//! In: a file, or a [`KubeProxyConfiguration`] made of flags. Out: [`ValidatedConfig`], checked. Must not know: flags, or how anything is done.
//! [`read`] takes the fields from a file, [`KubeProxyConfiguration::complete`] fills in defaults, [`validate()`] checks and translates.

mod check;
pub mod consistency;
mod decode;
mod defaults;
pub mod duration;
pub mod file;
pub mod gates;
pub mod logging;
pub mod net;
#[cfg(test)]
mod surface;
mod translate;
mod validated;
mod write;

use std::path::PathBuf;

use thiserror::Error;

pub use self::decode::{decode, read};
pub use self::defaults::{CONTENT_TYPE as DEFAULT_CONTENT_TYPE, DISABLED, usual_hosts};
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
    /// The file is no KubeProxyConfiguration.
    #[error("failed complete: failed to decode {path}: {reason}")]
    Decode {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// A name of nothing but blanks.
    #[error("failed complete: empty hostname-override is invalid")]
    Hostname,
    /// Feature gates that there are not, or that cannot be set so.
    #[error("failed complete: {}", aggregate(.0))]
    Gates(Vec<String>),
    /// Values that cannot be: all of them.
    #[error("failed validate: {}", aggregate(.0))]
    Invalid(Vec<String>),
}

/// One error as it is, several in brackets.
fn aggregate(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        all => format!("[{}]", all.join(", ")),
    }
}
