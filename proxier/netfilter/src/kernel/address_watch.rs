//! Whether addresses of the node's interfaces came or went.
//!
//! rtnetlink notifications tell, so that addresses need not be read to find out. They only tell that something happened:
//! the addresses are then read as a whole, however many notifications there were.

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

/// A source of news about addresses of one family.
pub trait AddressWatch: Send + std::fmt::Debug {
    /// Whether addresses may be others than when this was called last. Never blocks; costs one system call if nothing
    /// happened.
    fn changed(&mut self, now: Instant) -> bool;
}

/// The running kernel's notifications in the network namespace of the thread that calls first.
///
/// Where they cannot be had, nothing is reported and the subscription is tried again after `retry`: whoever asks reads
/// the addresses at times anyway. Each new subscription reports a change, as do lost notifications.
#[derive(Debug)]
pub struct SystemAddressWatch {
    family: IpFamily,
    /// Notifications about this device do not count.
    ignored: Option<DeviceName>,
    retry: Duration,
    listener: Option<Listener>,
    next_try: Option<Instant>,
    /// There is no subscription, and the log says so.
    failing: bool,
}

impl SystemAddressWatch {
    /// No subscription yet. IPVS mode ignores its own device, on which each change of a Service changes addresses.
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
                    info!("{}: the kernel reports changes of addresses again", self.family);
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
            warn!("{family}: the kernel does not report changes of addresses, reading them every {retry:?}: {error}");
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

/// The index of the device whose addresses a notification is about, as far as it says; `None` if it is about something else.
pub(super) fn changed_device(received: &Received<'_>) -> Option<Option<u32>> {
    // `struct ifaddrmsg`: family, prefix length, flags, scope, index of the device.
    let index = || received.payload.get(4..8)?.try_into().ok().map(u32::from_ne_bytes);
    [RTM_NEWADDR, RTM_DELADDR].contains(&received.kind).then(index)
}

/// Whether a device of that name has that index. Where this cannot be told, it has not.
fn is_device(name: DeviceName, index: u32) -> bool {
    nix::net::if_::if_nametoindex(name.as_str()).is_ok_and(|of_name| of_name == index)
}
