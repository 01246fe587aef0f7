//! The sockets that listeners and connections of localhost node ports share.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::warn;

use super::pipes::PipePool;

/// The descriptors of one connection: its client's and its endpoint's.
const SOCKETS_OF_CONNECTION: u32 = 2;
/// The least time between two warnings that clients wait.
const WARNING_INTERVAL: Duration = Duration::from_secs(60);

/// The sockets that all node ports share. Clones share them.
///
/// A quarter is for listeners alone, so that a flood of connections, which end when their clients please, keeps no new
/// node port from being served.
#[derive(Clone, Debug)]
pub struct SocketBudget {
    for_listeners: Arc<Semaphore>,
    for_all: Arc<Semaphore>,
    warned_at: Arc<Mutex<Option<Instant>>>,
    pub pipes: Arc<PipePool>,
}

impl SocketBudget {
    /// At most `sockets` at a time, and `pipes` transfers without a copy.
    pub fn new(sockets: usize, pipes: usize) -> Self {
        let sockets = sockets.min(Semaphore::MAX_PERMITS);
        let for_listeners = sockets / 4;
        Self {
            for_listeners: Arc::new(Semaphore::new(for_listeners)),
            for_all: Arc::new(Semaphore::new(sockets - for_listeners)),
            warned_at: Arc::default(),
            pipes: Arc::new(PipePool::new(pipes)),
        }
    }

    /// A socket to listen on; `None` if none is left.
    pub fn listener(&self) -> Option<OwnedSemaphorePermit> {
        let reserved = self.for_listeners.clone().try_acquire_owned();
        reserved.or_else(|_| self.for_all.clone().try_acquire_owned()).ok()
    }

    /// Waits until there are sockets for a connection through `node_port`; a wait is warned about once a minute.
    pub async fn connection(&self, node_port: u16) -> OwnedSemaphorePermit {
        if let Ok(permit) = self.for_all.clone().try_acquire_many_owned(SOCKETS_OF_CONNECTION) {
            return permit;
        }
        if self.is_warning_due() {
            warn!(
                "All sockets for connections to localhost node ports are in use: clients of node port {node_port}, and \
                 maybe of others, wait until connections end; raise RLIMIT_NOFILE"
            );
        }
        let permit = self.for_all.clone().acquire_many_owned(SOCKETS_OF_CONNECTION).await;
        permit.expect("the semaphore is never closed")
    }

    fn is_warning_due(&self) -> bool {
        let mut warned_at = self.warned_at.lock().unwrap_or_else(PoisonError::into_inner);
        let due = warned_at.is_none_or(|warned_at| warned_at.elapsed() >= WARNING_INTERVAL);
        if due {
            *warned_at = Some(Instant::now());
        }
        due
    }
}
