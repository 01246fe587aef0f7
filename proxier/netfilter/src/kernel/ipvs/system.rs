//! The running kernel's IPVS table.
//!
//! In: the trait's questions and operations. Out: messages, and what the kernel says to them.
//! Must not know: whose servers they are. A socket belongs to the namespace of the thread that opens it.

use std::io;
use std::process::Command;

use netlink_sys::protocols::NETLINK_GENERIC;

use super::super::command;
use super::super::netlink::{Attributes, Netlink, NetlinkError, Request, generic_family};
use super::{Info, IpvsError, IpvsTable, Operation, wire};
use crate::IpFamily;
use crate::ipvs::{Connections, ListedServer, RealServer, ServerKey, Statistics, Timeouts, VirtualServer};

/// The IPVS table of the network namespace in which it was opened.
#[derive(Debug)]
pub struct SystemIpvs {
    socket: Netlink,
    /// The kernel's number for IPVS.
    number: u16,
}

impl SystemIpvs {
    /// The table as it is. Nothing is loaded for it.
    ///
    /// # Errors
    /// If the kernel has no IPVS, or it is not loaded.
    pub fn open() -> Result<Self, IpvsError> {
        let mut socket = Netlink::open(NETLINK_GENERIC).map_err(failure)?;
        match generic_family(&mut socket, "IPVS").map_err(failure)? {
            Some(number) => Ok(Self { socket, number }),
            None => Err(IpvsError::Missing { tried: String::new() }),
        }
    }

    /// The table, for the leftover cleanup; `None` if the kernel has no IPVS, or it is not loaded: it holds nothing then.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub fn open_if_present() -> Result<Option<Self>, IpvsError> {
        match Self::open() {
            Ok(table) => Ok(Some(table)),
            Err(IpvsError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The table, for a mode that needs it: IPVS is loaded if it is not there. The kernel itself loads schedulers when
    /// they are first used.
    ///
    /// # Errors
    /// If there is nothing to load; the error says what was tried.
    pub fn load() -> Result<Self, IpvsError> {
        let Err(IpvsError::Missing { .. }) = Self::open() else { return Self::open() };
        let loaded = command::run(Command::new("modprobe").args(["-va", "ip_vs"]), []);
        match (Self::open(), loaded) {
            (Err(IpvsError::Missing { .. }), Err(error)) => Err(IpvsError::Missing { tried: error.to_string() }),
            (outcome, _) => outcome,
        }
    }

    /// What the kernel says of its IPVS.
    ///
    /// # Errors
    /// If it does not say.
    pub fn info(&mut self) -> Result<Info, IpvsError> {
        self.one(&wire::info(self.number), wire::read_info)
    }

    /// Asks for one thing.
    fn one<T>(&mut self, request: &Request, read: fn(Attributes<'_>) -> Option<T>) -> Result<T, IpvsError> {
        let mut found = None;
        let asked = self.socket.query(request, &mut |received| {
            found = read(received.attributes(wire::HEADER));
            Ok(())
        });
        asked.map_err(failure)?;
        found.ok_or_else(|| IpvsError::Failed(io::Error::other("the kernel's answer does not say what was asked")))
    }
}

/// What a failure means that is about no object.
fn failure(error: NetlinkError) -> IpvsError {
    match error.errno() {
        Some(libc::EPERM | libc::EACCES) => IpvsError::NotPermitted,
        // A kernel without generic netlink.
        Some(libc::EPROTONOSUPPORT) => IpvsError::Missing { tried: String::new() },
        _ => IpvsError::Failed(error.into()),
    }
}

impl IpvsTable for SystemIpvs {
    fn virtual_servers(&mut self, family: IpFamily, each: &mut dyn FnMut(VirtualServer)) -> Result<(), IpvsError> {
        let dump = self.socket.dump_all(&wire::virtual_servers(self.number), &mut |received| {
            let server = wire::virtual_server(received.attributes(wire::HEADER));
            server.filter(|server| IpFamily::of(&server.key.address.ip()) == family).into_iter().for_each(&mut *each);
            Ok(())
        });
        dump.map_err(failure)
    }

    fn real_servers(&mut self, of: ServerKey, each: &mut dyn FnMut(RealServer, Connections)) -> Result<(), IpvsError> {
        let family = IpFamily::of(&of.address.ip());
        let dump = self.socket.dump_all(&wire::real_servers(self.number, &of), &mut |received| {
            if let Some((real, connections)) = wire::real_server(received.attributes(wire::HEADER), family) {
                each(real, connections);
            }
            Ok(())
        });
        dump.map_err(failure)
    }

    fn list(&mut self, family: IpFamily, each: &mut dyn FnMut(ListedServer)) -> Result<(), IpvsError> {
        let dump = self.socket.dump_all(&wire::virtual_servers(self.number), &mut |received| {
            wire::listed(received.attributes(wire::HEADER), family).into_iter().for_each(&mut *each);
            Ok(())
        });
        dump.map_err(failure)
    }

    fn list_real(
        &mut self,
        of: ServerKey,
        each: &mut dyn FnMut(RealServer, Connections, Statistics),
    ) -> Result<(), IpvsError> {
        let family = IpFamily::of(&of.address.ip());
        let dump = self.socket.dump_all(&wire::real_servers(self.number, &of), &mut |received| {
            let message = received.attributes(wire::HEADER);
            if let Some((real, connections)) = wire::real_server(message, family) {
                each(real, connections, wire::real_statistics(message));
            }
            Ok(())
        });
        dump.map_err(failure)
    }

    fn apply(&mut self, operations: &[Operation], failed: &mut dyn FnMut(usize, IpvsError)) -> Result<(), IpvsError> {
        let requests = operations.iter().map(|operation| wire::request(self.number, operation));
        let outcome = self.socket.request_in_batches(requests, |index, error| {
            failed(index, IpvsError::of(&operations[index], error.errno(), error.into()));
        });
        outcome.map_err(failure)
    }

    fn timeouts(&mut self) -> Result<Timeouts, IpvsError> {
        self.one(&wire::timeouts(self.number), wire::read_timeouts)
    }

    fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), IpvsError> {
        let refused = |error: NetlinkError| match failure(error) {
            IpvsError::Failed(source) => {
                let Timeouts { tcp, tcp_fin, udp } = timeouts;
                IpvsError::Refused { object: format!("IPVS timeouts (tcp {tcp}, tcpfin {tcp_fin}, udp {udp})"), source }
            }
            other => other,
        };
        self.socket.request(&wire::set_timeouts(self.number, timeouts)).map_err(refused)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_kernel_without_ipvs_is_told_apart() {
        let has = Path::new("/proc/net/ip_vs").exists();
        match SystemIpvs::open() {
            Ok(_) => assert!(has),
            Err(error) => {
                assert!(!has, "{error}");
                let text = error.to_string();
                assert!(
                    text.starts_with("this kernel has no IP_VS: load module ip_vs (modprobe ip_vs), or boot"),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn what_came_of_loading_it_is_said() {
        let error =
            IpvsError::Missing { tried: "modprobe -va ip_vs failed: not found in /lib/modules/6.18".to_owned() };
        let expected =
            "this kernel has no IP_VS (modprobe -va ip_vs failed: not found in /lib/modules/6.18): load module";
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}
