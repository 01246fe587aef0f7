use std::time::SystemTime;

use super::*;
use crate::model::{NamespacedName, Slice};
use crate::track::SliceContent;

fn slice(name: &str, trigger: Option<u64>) -> Change {
    let trigger = trigger.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    let content = SliceContent { service: "web".into(), slice: Slice::default(), trigger };
    Change::Slice(NamespacedName::new("default", name), Some(content))
}

fn gone(name: &str) -> Change {
    Change::Slice(NamespacedName::new("default", name), None)
}

fn kept(name: &str) -> Change {
    Change::Kept(ObjectKey { kind: Kind::EndpointSlice, name: NamespacedName::new("default", name) })
}

fn drain(receiver: &Receiver) -> Vec<(Change, u32)> {
    std::iter::from_fn(|| receiver.try_recv().ok())
        .map(|mail| match mail.message {
            Message::Change(change) => (change, mail.events),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn a_pending_state_when_a_newer_one_comes_is_replaced() {
    let (sender, receiver) = mailbox();
    for change in [slice("a", Some(7)), slice("b", None), slice("a", Some(9)), gone("b"), kept("a")] {
        sender.send(change);
    }
    assert_eq!(sender.pending(), 2);
    // The first trigger counts for latency.
    assert_eq!(drain(&receiver), [(slice("a", Some(7)), 2), (gone("b"), 2)]);
    sender.send(kept("a"));
    sender.send(slice("a", None));
    assert_eq!(drain(&receiver), [(slice("a", None), 2)]);
}

#[test]
fn state_sent_after_the_receiver_took_an_entry_is_a_new_entry() {
    let (sender, receiver) = mailbox();
    sender.send(slice("a", None));
    sender.send(slice("b", None));
    assert!(receiver.try_recv().is_ok());
    sender.send(slice("a", None));
    sender.send(slice("b", None));
    assert_eq!(drain(&receiver), [(slice("b", None), 2), (slice("a", None), 1)]);
}

#[test]
fn a_new_list_replaces_everything_pending_of_its_kind() {
    let (sender, receiver) = mailbox();
    let service = Change::Service(NamespacedName::new("default", "web"), Vec::new());
    for _ in 0..1000 {
        sender.send(Change::Listing(Kind::EndpointSlice));
        for name in ["a", "b", "c"] {
            sender.send(slice(name, None));
        }
        sender.send(Change::Listed(Kind::EndpointSlice));
        sender.send(service.clone());
        sender.send(slice("a", None));
    }
    assert_eq!(sender.pending(), 6);
    let order: Vec<Change> = drain(&receiver).into_iter().map(|(change, _)| change).collect();
    let list = [Change::Listing(Kind::EndpointSlice), slice("a", None), slice("b", None), slice("c", None)];
    assert_eq!(order[0], service);
    assert_eq!(order[1..5], list);
    assert_eq!(order[5], Change::Listed(Kind::EndpointSlice));
}

#[test]
fn a_receiver_waits_until_a_message_comes_or_all_senders_are_gone() {
    let (sender, receiver) = mailbox();
    assert!(matches!(receiver.try_recv(), Err(TryRecvError::Empty)));
    assert!(matches!(receiver.recv(Some(Duration::from_millis(1))), Err(RecvTimeoutError::Timeout)));
    let second = sender.clone();
    let thread = std::thread::spawn(move || {
        second.send(slice("a", None));
        drop(second);
    });
    assert!(receiver.recv(None).is_ok());
    thread.join().expect("it sends");
    let thread = std::thread::spawn(move || drop(sender));
    assert!(matches!(receiver.recv(Some(Duration::MAX)), Err(RecvTimeoutError::Disconnected)));
    thread.join().expect("it drops");
    assert!(matches!(receiver.try_recv(), Err(TryRecvError::Disconnected)));
}

#[test]
fn a_receiver_that_is_gone_holds_no_memory() {
    let (sender, receiver) = mailbox();
    sender.send(slice("a", None));
    drop(receiver);
    sender.send(slice("b", None));
    assert_eq!(sender.pending(), 0);
}

#[test]
fn activity_distinguishes_a_busy_receiver_from_a_waiting_one() {
    let (sender, receiver) = mailbox();
    let activity = sender.activity();
    assert!(activity.busy_since().is_some(), "its thread has not started");
    let thread = std::thread::spawn(move || {
        assert!(receiver.recv(None).is_ok());
        receiver
    });
    while activity.busy_since().is_some() {
        std::thread::yield_now();
    }
    sender.send(slice("a", None));
    let receiver = thread.join().expect("it receives");
    let since = activity.busy_since().expect("it works on what it took");
    assert_eq!(activity.busy_since(), Some(since), "and stays at that");
    assert!(receiver.try_recv().is_err());
    assert!(activity.busy_since() > Some(since));
    drop(receiver);
    assert!(activity.busy_since().is_some(), "a thread that ended is not idle");
}
