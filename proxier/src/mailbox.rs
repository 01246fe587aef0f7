//! The queue between the watches and a family's thread, with one pending entry per object.
//!
//! Memory must not grow while the thread hangs in the kernel or the API server forces relists: a newer state of an
//! object replaces the pending one, and a new list replaces everything pending of its kind. Rules depend only on the
//! last state, so nothing is lost; the number of coalesced events is kept for metrics.

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use crate::track::{Change, CopyError, CopyRequest, Kind, ObjectKey, Tracker};
use crate::traffic::DestinationNames;

/// A message to a family's thread.
#[derive(Debug)]
pub enum Message {
    /// An object or a whole list changed.
    Change(Change),
    /// A request for a copy of the model, or of one Service's part.
    Copy(CopyRequest, mpsc::Sender<Result<Tracker, CopyError>>),
    /// A request for the Service ports by destination.
    Names(mpsc::Sender<DestinationNames>),
}

impl From<Change> for Message {
    fn from(change: Change) -> Self {
        Self::Change(change)
    }
}

/// A message and the number of events coalesced into it.
#[derive(Debug)]
pub struct Mail {
    /// The newest event.
    pub message: Message,
    /// At least 1.
    pub events: u32,
}

#[derive(Debug, Default)]
struct Queue {
    mail: VecDeque<Mail>,
    /// The sequence number of the first entry.
    first: u64,
    /// The sequence numbers of entries that hold an object's state.
    objects: HashMap<ObjectKey, u64>,
    senders: usize,
    receiver_is_gone: bool,
    waiting: bool,
    /// When the receiver last took or polled for a message; `None` while it waits.
    busy_since: Option<Instant>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sending half of a mailbox.
#[derive(Debug)]
pub struct Sender(Arc<Shared>);

/// The receiving half of a mailbox.
#[derive(Debug)]
pub struct Receiver(Arc<Shared>);

/// Reports how long the receiving thread has been busy, without keeping the queue open.
#[derive(Clone, Debug)]
pub struct Activity(Arc<Shared>);

impl Activity {
    /// When the receiver last took or polled for a message; `None` while it waits.
    ///
    /// The time does not advance while the thread hangs in a tool or the kernel, or after it ended.
    #[must_use]
    pub fn busy_since(&self) -> Option<Instant> {
        self.0.queue().busy_since
    }
}

/// Creates an empty mailbox.
#[must_use]
pub fn mailbox() -> (Sender, Receiver) {
    let shared = Arc::new(Shared::default());
    let mut queue = shared.queue();
    queue.senders = 1;
    // The thread counts as busy until it has started.
    queue.busy_since = Some(Instant::now());
    drop(queue);
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl Sender {
    /// Queues a message without blocking; a message without a receiver is dropped.
    pub fn send(&self, message: impl Into<Message>) {
        let mut queue = self.0.queue();
        if queue.receiver_is_gone {
            return;
        }
        queue.push(message.into());
        if queue.waiting {
            self.0.arrived.notify_one();
        }
    }

    /// A handle that reports whether the receiver still takes messages.
    #[must_use]
    pub fn activity(&self) -> Activity {
        Activity(Arc::clone(&self.0))
    }

    /// How many messages are pending.
    #[cfg(test)]
    fn pending(&self) -> usize {
        self.0.queue().mail.len()
    }
}

impl Clone for Sender {
    fn clone(&self) -> Self {
        self.0.queue().senders += 1;
        Self(Arc::clone(&self.0))
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.senders -= 1;
        if queue.senders == 0 {
            self.0.arrived.notify_one();
        }
    }
}

impl Receiver {
    /// The next message, if one is pending.
    ///
    /// # Errors
    /// `Empty`, or `Disconnected` when none can come any more.
    pub fn try_recv(&self) -> Result<Mail, TryRecvError> {
        let mut queue = self.0.queue();
        queue.busy_since = Some(Instant::now());
        match queue.pop() {
            Some(mail) => Ok(mail),
            None if queue.senders == 0 => Err(TryRecvError::Disconnected),
            None => Err(TryRecvError::Empty),
        }
    }

    /// Waits for the next message, for at most `timeout`, if there is one.
    ///
    /// # Errors
    /// `Timeout`, or `Disconnected` when none can come any more.
    pub fn recv(&self, timeout: Option<Duration>) -> Result<Mail, RecvTimeoutError> {
        // An instant that cannot be represented means no timeout.
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut queue = self.0.queue();
        loop {
            let now = Instant::now();
            queue.busy_since = Some(now);
            if let Some(mail) = queue.pop() {
                return Ok(mail);
            }
            if queue.senders == 0 {
                return Err(RecvTimeoutError::Disconnected);
            }
            let left = until.map(|until| until.saturating_duration_since(now));
            if left == Some(Duration::ZERO) {
                return Err(RecvTimeoutError::Timeout);
            }
            (queue.waiting, queue.busy_since) = (true, None);
            queue = match left {
                Some(left) => {
                    let waited = self.0.arrived.wait_timeout(queue, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.0.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
            queue.waiting = false;
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.receiver_is_gone = true;
        queue.mail = VecDeque::new();
        queue.objects = HashMap::new();
    }
}

impl Queue {
    fn push(&mut self, message: Message) {
        match &message {
            Message::Change(Change::Listing(kind)) => self.forget(*kind),
            Message::Change(change) => {
                if let Some(key) = object(change) {
                    return self.push_object(key, message);
                }
            }
            _ => {}
        }
        self.mail.push_back(Mail { message, events: 1 });
    }

    /// Queues the state of an object, in place of the pending one.
    fn push_object(&mut self, key: ObjectKey, message: Message) {
        let Some(number) = self.objects.get(&key) else {
            self.objects.insert(key, self.first + self.mail.len() as u64);
            self.mail.push_back(Mail { message, events: 1 });
            return;
        };
        let place = usize::try_from(number - self.first).ok().and_then(|place| self.mail.get_mut(place));
        let Some(pending) = place else { return };
        match message {
            // The pending entry is an older state that could be decoded.
            Message::Change(Change::Kept(_)) => {}
            message => {
                pending.message = with_trigger_of(message, &pending.message);
                pending.events = pending.events.saturating_add(1);
            }
        }
    }

    /// Drops everything pending of a kind: a new list replaces or deletes it.
    fn forget(&mut self, kind: Kind) {
        self.mail.retain(|mail| match &mail.message {
            Message::Change(Change::Listing(of) | Change::Listed(of) | Change::ListedInPart(of)) => *of != kind,
            Message::Change(change) => object(change).is_none_or(|key| key.kind != kind),
            _ => true,
        });
        self.objects.clear();
        for (place, mail) in self.mail.iter().enumerate() {
            if let Message::Change(change) = &mail.message
                && let Some(key) = object(change)
            {
                self.objects.insert(key, self.first + place as u64);
            }
        }
    }

    fn pop(&mut self) -> Option<Mail> {
        let mail = self.mail.pop_front()?;
        self.first += 1;
        if let Message::Change(change) = &mail.message
            && let Some(key) = object(change)
        {
            self.objects.remove(&key);
        }
        if self.mail.is_empty() {
            // Release the memory of a burst.
            self.mail.shrink_to(64);
            self.objects.shrink_to(64);
        }
        Some(mail)
    }
}

/// The object whose state a change carries.
fn object(change: &Change) -> Option<ObjectKey> {
    let (kind, name) = match change {
        Change::Service(name, _) => (Kind::Service, name.clone()),
        Change::Slice(name, _) => (Kind::EndpointSlice, name.clone()),
        Change::ServiceCidr(name, _) => (Kind::ServiceCidr, name.clone()),
        Change::Kept(key) => return Some(key.clone()),
        // Only the own Node is watched.
        Change::Node(_) => (Kind::Node, crate::model::NamespacedName::new("", "")),
        Change::Listing(_) | Change::Listed(_) | Change::ListedInPart(_) => return None,
    };
    Some(ObjectKey { kind, name })
}

/// Keeps the earliest trigger time: programming latency counts from the first coalesced change.
fn with_trigger_of(mut new: Message, old: &Message) -> Message {
    if let (Message::Change(Change::Slice(_, Some(new))), Message::Change(Change::Slice(_, Some(old)))) =
        (&mut new, old)
    {
        new.trigger = match (new.trigger, old.trigger) {
            (Some(new), Some(old)) => Some(new.min(old)),
            (new, old) => new.or(old),
        };
    }
    new
}

#[cfg(test)]
mod tests;
