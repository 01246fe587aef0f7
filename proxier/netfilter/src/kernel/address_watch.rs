//! Notifications that interface addresses were added or removed.
//!
//! rtnetlink only signals that something changed; the caller then reads all addresses, however many notifications
//! arrived.

use std::io;
use std::time::{Duration, Instant};

use netlink_sys::protocols::NETLINK_ROUTE;
use tracing::{info, warn};

use super::link::DeviceName;
use super::netlink::{Drained, Listener, Received};
use crate::IpFamily;

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTNLGRP_IPV4_IFADDR: u32 = 5;
const RTNLGRP_IPV6_IFADDR: u32 = 9;

/// A source of notifications about the addresses of one family.
pub trait AddressWatch: Send + std::fmt::Debug {
    /// Whether addresses may have changed since the last call.
    ///
    /// Never blocks; costs one system call when nothing happened.
    fn changed(&mut self, now: Instant) -> bool;
}

/// rtnetlink notifications in the network namespace of the thread that calls first.
///
/// Without a subscription, no change is reported and subscribing is retried after `retry`: callers read the addresses
/// periodically anyway. Each new subscription reports a change, and so do lost notifications (`ENOBUFS`).
#[derive(Debug)]
pub struct SystemAddressWatch {
    family: IpFamily,
    /// The device whose notifications are ignored.
    ignored: Option<DeviceName>,
    retry: Duration,
    listener: Option<Listener>,
    next_try: Option<Instant>,
    /// Whether subscribing failed, and the failure was logged.
    failing: bool,
}

impl SystemAddressWatch {
    /// A watch that subscribes at its first use.
    ///
    /// `ignored` excludes a device whose addresses the caller changes itself, such as the dummy device of IPVS mode.
    #[must_use]
    pub fn new(family: IpFamily, ignored: Option<DeviceName>, retry: Duration) -> Self {
        Self { family, ignored, retry, listener: None, next_try: None, failing: false }
    }

    fn subscribe(&mut self, now: Instant) -> bool {
        if self.next_try.is_some_and(|at| now < at) {
            return false;
        }
        let group = match self.family {
            IpFamily::V4 => RTNLGRP_IPV4_IFADDR,
            IpFamily::V6 => RTNLGRP_IPV6_IFADDR,
        };
        match Listener::open(NETLINK_ROUTE, &[group]) {
            Ok(listener) => {
                self.listener = Some(listener);
                if std::mem::take(&mut self.failing) {
                    info!("{}: receiving address notifications again", self.family);
                }
                true
            }
            Err(error) => {
                self.failed(now, &error.into());
                false
            }
        }
    }

    fn failed(&mut self, now: Instant, error: &io::Error) {
        self.listener = None;
        self.next_try = Some(now + self.retry);
        if !std::mem::replace(&mut self.failing, true) {
            let (family, retry) = (self.family, self.retry);
            warn!("{family}: cannot subscribe to address notifications, reading addresses every {retry:?}: {error}");
        }
    }
}

impl AddressWatch for SystemAddressWatch {
    fn changed(&mut self, now: Instant) -> bool {
        let Some(listener) = &mut self.listener else { return self.subscribe(now) };
        let (mut devices, mut other) = (Vec::new(), false);
        let drained = listener.drain(&mut |received| match changed_device(received) {
            None => {}
            Some(Some(index)) if devices.contains(&index) => {}
            Some(Some(index)) => devices.push(index),
            Some(None) => other = true,
        });
        match drained {
            Ok(Drained::All) if other => true,
            Ok(Drained::All) => devices.iter().any(|index| !self.ignored.is_some_and(|name| is_device(name, *index))),
            Ok(Drained::SomeLost) => true,
            Err(error) => {
                self.failed(now, &error.into());
                true
            }
        }
    }
}

/// The device index of an address notification; `None` for other messages, `Some(None)` without an index.
pub(super) fn changed_device(received: &Received<'_>) -> Option<Option<u32>> {
    // struct ifaddrmsg: family, prefix length, flags, scope, device index.
    let index = || received.payload.get(4..8)?.try_into().ok().map(u32::from_ne_bytes);
    [RTM_NEWADDR, RTM_DELADDR].contains(&received.kind).then(index)
}

/// Whether the device of a name has an index; `false` if this cannot be read.
fn is_device(name: DeviceName, index: u32) -> bool {
    nix::net::if_::if_nametoindex(name.as_str()).is_ok_and(|of_name| of_name == index)
}
