//! What kube-proxy is told: KubeProxyConfiguration and flags, turned into values.
//!
//! In: a file or the command line. Out: [`Settings`], checked. Must not know: how anything is done with them.
//! With a file, flags count only where kube-proxy keeps them: `--hostname-override`, `--master`, `-v`.

mod duration;
mod file;
mod validate;

use std::path::PathBuf;

use thiserror::Error;

pub use self::duration::parse as parse_duration;
pub use self::file::{ClientConnection, DetectLocal, File, Iptables, read};
pub use self::validate::{Settings, settings};

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is no KubeProxyConfiguration.
    #[error("cannot decode the configuration {path}: {reason}")]
    Decode {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// Values that cannot be: all of them.
    #[error("invalid configuration: {}", .0.join("; "))]
    Invalid(Vec<String>),
}
