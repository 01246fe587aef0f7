//! The signals that end the proxy in order.
//!
//! In: signals. Out: which one came first. Must not know: what ends. kube-proxy simply dies of them; here the sync under
//! way is finished, health checks are told, and the exit code is 0.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens to SIGTERM, SIGINT and SIGHUP, but for those that whoever started us wants to be ignored (`nohup`).
pub struct Stop {
    term: Option<Signal>,
    interrupt: Option<Signal>,
    hang_up: Option<Signal>,
}

impl Stop {
    /// From now on they do not kill. `ignored`: a set of bits, 1 for signal 1.
    ///
    /// # Errors
    /// If that cannot be had.
    pub fn new(ignored: u64) -> Result<Self, String> {
        let listen = |kind: SignalKind| {
            if ignored & (1 << (kind.as_raw_value() - 1)) != 0 {
                return Ok(None);
            }
            signal(kind).map(Some).map_err(|error| format!("cannot listen for signals: {error}"))
        };
        Ok(Self {
            term: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// The first that comes.
    pub async fn wait(&mut self) -> &'static str {
        tokio::select! {
            () = come(&mut self.term) => "SIGTERM",
            () = come(&mut self.interrupt) => "SIGINT",
            () = come(&mut self.hang_up) => "SIGHUP",
        }
    }
}

async fn come(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => std::future::pending().await,
    }
}
