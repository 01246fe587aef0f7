//! The running proxy's own model, for the page that compares with it.
//!
//! A copy is requested like any change, through the proxier's channel: nothing is locked, and nothing is kept.

use std::collections::BTreeMap;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use proxier::mailbox::Message;
use proxier::track::{CopyError, CopyRequest, Tracker};
use proxier::traffic::DestinationNames;
use thiserror::Error;

use crate::source::FamilySenders;

/// How long a proxier may be busy with something else.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Where to ask.
#[derive(Clone, Debug, Default)]
pub struct Model(Arc<OnceLock<Weak<FamilySenders>>>);

impl Model {
    /// Registers the senders that queries use from now on, until they are dropped.
    pub fn is(&self, families: &Arc<FamilySenders>) {
        // Only one proxy runs in a process.
        let _ = self.0.set(Arc::downgrade(families));
    }

    /// What is known now, by family.
    ///
    /// # Errors
    /// If no proxier runs, the first lists are incomplete, or there are too many Service ports.
    pub fn copy(&self, extent: &CopyRequest) -> Result<BTreeMap<IpFamily, Tracker>, NoModel> {
        let families = self.0.get().and_then(Weak::upgrade).ok_or(NoModel::Absent)?;
        let until = Instant::now() + BUSY_TIMEOUT;
        let mut answers = Vec::new();
        for family in families.known() {
            let (answer, copy) = channel();
            families.send(family, Message::Copy(extent.clone(), answer));
            answers.push((family, copy));
        }
        // Else it would be kept alive.
        drop(families);
        let mut copies = BTreeMap::new();
        for (family, copy) in answers {
            let copy = copy.recv_timeout(until.saturating_duration_since(Instant::now()));
            let copy = copy.map_err(|error| match error {
                RecvTimeoutError::Timeout => NoModel::Busy(family),
                RecvTimeoutError::Disconnected => NoModel::Absent,
            })?;
            copies.insert(family, copy?);
        }
        Ok(copies)
    }

    /// Asks the family's proxier for the names of its destinations. Without a proxier, `answer` is dropped.
    pub fn request_names(&self, family: IpFamily, answer: Sender<DestinationNames>) {
        if let Some(families) = self.0.get().and_then(Weak::upgrade) {
            families.send(family, Message::Names(answer));
        }
    }
}

/// Why the model cannot be had.
#[derive(Clone, Copy, Debug, Error)]
pub enum NoModel {
    /// There is no proxier.
    #[error("the proxy is about to start, or to end")]
    Absent,
    /// It does not answer.
    #[error("the proxy of {0} was busy for {BUSY_TIMEOUT:?}")]
    Busy(IpFamily),
    /// It does not know everything yet.
    #[error("Services and EndpointSlices were not all listed yet: the log says what they wait for")]
    Incomplete,
    /// Too many Service ports.
    #[error(
        "{0} Service ports are too many for one page: ask for a Service with ?service=namespace/name, or run kube-proxy \
         dump on the node"
    )]
    TooMany(usize),
}

impl From<CopyError> for NoModel {
    fn from(no_copy: CopyError) -> Self {
        match no_copy {
            CopyError::Incomplete => Self::Incomplete,
            CopyError::TooMany(count) => Self::TooMany(count),
        }
    }
}
