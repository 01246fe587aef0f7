//! The signals that stop the proxy.
//!
//! kube-proxy is killed by them; here the running sync is finished, health check clients get 503, and the exit code is
//! 0.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::info;

/// Listens to SIGTERM, SIGINT and SIGHUP, unless the parent process ignores them (`nohup`).
pub struct StopSignals {
    term: Option<Signal>,
    interrupt: Option<Signal>,
    hang_up: Option<Signal>,
}

impl StopSignals {
    /// Replaces the default action of these signals. `ignored`: a bit set, bit 0 for signal 1.
    ///
    /// # Errors
    /// The kernel rejects a handler.
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

    /// Waits for the first signal and logs it before anything stops.
    pub async fn wait(&mut self) {
        let signal = tokio::select! {
            () = received(&mut self.term) => "SIGTERM",
            () = received(&mut self.interrupt) => "SIGINT",
            () = received(&mut self.hang_up) => "SIGHUP",
        };
        info!("Received {signal}: stopping, rules left in place");
    }
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => _ = signal.recv().await,
        None => std::future::pending().await,
    }
}
