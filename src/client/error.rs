//! Errors of requests to an API server.

use std::error::Error;
use std::io::ErrorKind;

use super::causes::{causes, error_chain};

/// A request without a response, or with an incomplete one. Its text is one line with the server and the cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The server's host, or a proxy's, refused the connection: nothing listens there.
    #[error("{server}: {cause}")]
    Refused {
        /// Its URL.
        server: String,
        /// Which of them, and the kernel's error.
        cause: String,
    },
    /// A timeout, or a dead connection.
    #[error("{server}: {cause}")]
    TimedOut {
        /// Its URL.
        server: String,
        /// The step that timed out.
        cause: String,
    },
    /// One side rejects the other's certificate. The cause names the file.
    #[error("{server}: {cause}")]
    Tls {
        /// Its URL.
        server: String,
        /// The certificate and its fault.
        cause: String,
    },
    /// No credentials.
    #[error("{server}: no credentials: {cause}")]
    Credentials {
        /// Its URL.
        server: String,
        /// Why the file or the plugin has none.
        cause: String,
    },
    /// Anything else: a reset, a broken stream, a proxy's refusal.
    #[error("{server}: {cause}")]
    Other {
        /// Its URL.
        server: String,
        /// The whole chain of causes.
        cause: String,
    },
}

impl RequestError {
    /// Whether nothing listens there; client-go waits for such a server and lists again without other backoff.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Classifies an error of a library.
    pub fn of(server: &str, error: &(dyn Error + 'static)) -> Self {
        Self::known(server, error).unwrap_or_else(|| Self::Other { server: server.to_owned(), cause: causes(error) })
    }

    fn known(server: &str, error: &(dyn Error + 'static)) -> Option<Self> {
        let server = || server.to_owned();
        for cause in error_chain(error) {
            if let Some(error) = cause.downcast_ref::<ConnectError>() {
                return Some(match error.clone() {
                    ConnectError::Tls(cause) => Self::Tls { server: server(), cause },
                    ConnectError::TimedOut(cause) => Self::TimedOut { server: server(), cause },
                    ConnectError::Credentials(cause) => Self::Credentials { server: server(), cause },
                    ConnectError::Proxy(cause) => Self::Other { server: server(), cause },
                    ConnectError::ProxyRefused(cause) => Self::Refused { server: server(), cause },
                });
            }
            if cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_timeout) {
                let cause = "the server does not answer an HTTP/2 PING".to_owned();
                return Some(Self::TimedOut { server: server(), cause });
            }
            let Some(io) = cause.downcast_ref::<std::io::Error>() else { continue };
            // `source` of an I/O error is that of the wrapped error, not the wrapped error itself.
            if let Some(known) = io.get_ref().and_then(|inner| Self::known(&server(), inner)) {
                return Some(known);
            }
            match io.kind() {
                ErrorKind::ConnectionRefused => {
                    return Some(Self::Refused { server: server(), cause: "connection refused".to_owned() });
                }
                ErrorKind::TimedOut => return Some(Self::TimedOut { server: server(), cause: causes(error) }),
                _ => {}
            }
        }
        None
    }
}

/// Why a connection could not be made.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ConnectError {
    /// One side rejects the other's certificate, or does not speak TLS.
    #[error("{0}")]
    Tls(String),
    /// A timeout.
    #[error("{0}")]
    TimedOut(String),
    /// A plugin issued no certificate.
    #[error("{0}")]
    Credentials(String),
    /// A proxy does not connect to the server, or cannot be reached.
    #[error("{0}")]
    Proxy(String),
    /// Nothing listens at the proxy's address.
    #[error("{0}")]
    ProxyRefused(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(error: &(dyn Error + 'static)) -> RequestError {
        RequestError::of("https://h:1", error)
    }

    #[test]
    fn kinds_of_errors_are_recognized_below_their_wrappers() {
        let refused = std::io::Error::other(std::io::Error::from(ErrorKind::ConnectionRefused));
        assert!(of(&refused).is_refused());
        let tls = std::io::Error::other(ConnectError::Tls("expired".to_owned()));
        assert!(matches!(of(&tls), RequestError::Tls { .. }));
        assert_eq!(of(&tls).to_string(), "https://h:1: expired");
        let reset = of(&std::io::Error::from(ErrorKind::ConnectionReset));
        assert!(matches!(reset, RequestError::Other { .. }) && !reset.is_refused());
        assert!(matches!(of(&std::io::Error::from(ErrorKind::TimedOut)), RequestError::TimedOut { .. }));
    }
}
