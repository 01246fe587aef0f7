//! What the kernel holds of IPVS mode: virtual servers, sets, addresses.
//!
//! A query for a subsystem may make the kernel load its module, so only subsystems that are loaded already are queried.

use std::path::Path;

use netfilter::IpFamily;
use netfilter::kernel::{DeviceName, IpSets, IpvsTable, Links, SystemIpSets, SystemIpvs, SystemLinks};
use proxier::ipvs::{Expected, ObservedState};

use super::Unread;

/// It is there in each network namespace once IPVS is loaded.
const LOADED: &str = "/proc/thread-self/net/ip_vs";

/// Whether a proxy in IPVS mode was here: the kernel has IPVS, and the device for addresses is there.
#[must_use]
pub fn present() -> bool {
    let device = DeviceName::parse(&Expected::device());
    let has =
        |links: &mut SystemLinks| device.is_some_and(|name| links.device(name).is_ok_and(|found| found.is_some()));
    Path::new(LOADED).exists() && SystemLinks::open().is_ok_and(|mut links| has(&mut links))
}

/// Reads it. `sets`: rules ask sets, so the kernel has them.
#[must_use]
pub fn read(family: IpFamily, sets: bool, unread: &mut Vec<Unread>) -> ObservedState {
    let mut note = |what: &str, why: String| unread.push(Unread::new(what, format!("{family}: {why}")));
    let mut table = None;
    if Path::new(LOADED).exists() {
        table = SystemIpvs::open().map_err(|error| note("virtual servers", error.to_string())).ok();
    }
    let mut found = None;
    if sets {
        found = SystemIpSets::open().map_err(|error| note("sets", error.to_string())).ok();
    }
    let mut links = match SystemLinks::open() {
        Ok(links) => links,
        Err(error) => {
            note("devices", error.to_string());
            return ObservedState::default();
        }
    };
    let table = table.as_mut().map(|table| table as &mut dyn IpvsTable);
    let found = found.as_mut().map(|sets| sets as &mut dyn IpSets);
    let (held, errors) = ObservedState::read(family, table, found, &mut links);
    errors.into_iter().for_each(|error| note("servers, sets or addresses", error.0));
    held
}
