//! IPVS in the running kernel.
//!
//! A netlink socket belongs to the network namespace of the thread that opens it.

use std::io;
use std::process::Command;

use netlink_sys::protocols::NETLINK_GENERIC;

use super::super::command;
use super::super::netlink::{Attributes, Netlink, NetlinkError, Request, generic_family};
use super::{Info, IpvsError, IpvsTable, Operation, wire};
use crate::IpFamily;
use crate::ipvs::{Connections, ListedServer, RealServer, ServerKey, Statistics, Timeouts, VirtualServer};

/// The IPVS table of the network namespace in which this was opened.
#[derive(Debug)]
pub struct SystemIpvs {
    socket: Netlink,
    /// The generic netlink family ID of IPVS.
    number: u16,
}

impl SystemIpvs {
    /// Opens the table without loading the module.
    ///
    /// # Errors
    /// If the kernel does not support IPVS, or the module is not loaded.
    pub fn open() -> Result<Self, IpvsError> {
        let mut socket = Netlink::open(NETLINK_GENERIC).map_err(failure)?;
        match generic_family(&mut socket, "IPVS").map_err(failure)? {
            Some(number) => Ok(Self { socket, number }),
            None => Err(IpvsError::Missing { tried: String::new() }),
        }
    }

    /// Opens the table if IPVS is loaded; `None` otherwise, because an unloaded module has no servers.
    ///
    /// # Errors
    /// If the kernel does not answer.
    pub fn open_if_present() -> Result<Option<Self>, IpvsError> {
        match Self::open() {
            Ok(table) => Ok(Some(table)),
            Err(IpvsError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Opens the table and loads the module `ip_vs` if necessary.
    ///
    /// The kernel loads schedulers at their first use.
    ///
    /// # Errors
    /// If the module cannot be loaded; the error describes the attempt.
    pub fn load() -> Result<Self, IpvsError> {
        let Err(IpvsError::Missing { .. }) = Self::open() else { return Self::open() };
        let loaded = command::run(Command::new("modprobe").args(["-va", "ip_vs"]), []);
        match (Self::open(), loaded) {
            (Err(IpvsError::Missing { .. }), Err(error)) => Err(IpvsError::Missing { tried: error.to_string() }),
            (outcome, _) => outcome,
        }
    }

    /// Version and size of IPVS.
    ///
    /// # Errors
    /// If the kernel does not return them.
    pub fn info(&mut self) -> Result<Info, IpvsError> {
        self.one(&wire::info(self.number), wire::read_info)
    }

    /// Sends a request that has one answer.
    fn one<T>(&mut self, request: &Request, read: fn(Attributes<'_>) -> Option<T>) -> Result<T, IpvsError> {
        let mut found = None;
        let outcome = self.socket.query(request, &mut |received| {
            found = read(received.attributes(wire::HEADER));
            Ok(())
        });
        outcome.map_err(failure)?;
        found.ok_or_else(|| IpvsError::Failed(io::Error::other("the kernel's answer lacks the requested attributes")))
    }
}

/// Maps an error that is not about an object.
fn failure(error: NetlinkError) -> IpvsError {
    match error.errno() {
        Some(libc::EPERM | libc::EACCES) => IpvsError::NotPermitted,
        // The kernel has no generic netlink.
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
    fn missing_ipvs_differs_from_other_errors() {
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
    fn module_load_failure_is_in_the_message() {
        let error =
            IpvsError::Missing { tried: "modprobe -va ip_vs failed: not found in /lib/modules/6.18".to_owned() };
        let expected =
            "this kernel has no IP_VS (modprobe -va ip_vs failed: not found in /lib/modules/6.18): load module";
        assert!(error.to_string().starts_with(expected), "{error}");
    }
}
