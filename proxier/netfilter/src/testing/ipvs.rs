//! A fake IPVS table, which returns the kernel's errors. Clones share one state.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::IpFamily;
use crate::ipvs::{Connections, Forward, ListedServer, RealServer, ServerKey, Statistics, Timeouts, VirtualServer};
use crate::kernel::{IpvsError, IpvsTable, Operation};

/// The schedulers of the kernel.
const SCHEDULERS: [&str; 14] =
    ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos"];

type Reals = BTreeMap<SocketAddr, (RealServer, Connections)>;

#[derive(Debug)]
struct IpvsState {
    virtuals: BTreeMap<ServerKey, (VirtualServer, Reals)>,
    timeouts: Timeouts,
    without: BTreeSet<String>,
    failing: Option<fn() -> IpvsError>,
    refused: Option<SocketAddr>,
    twice: bool,
    missed: Option<ServerKey>,
    operations: Vec<Operation>,
    listings: usize,
}

/// A fake IPVS table, initially empty, with every scheduler.
#[derive(Clone, Debug)]
pub struct FakeIpvs(Arc<Mutex<IpvsState>>);

impl Default for FakeIpvs {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(IpvsState {
            virtuals: BTreeMap::new(),
            timeouts: Timeouts { tcp: 900, tcp_fin: 120, udp: 300 },
            without: BTreeSet::new(),
            failing: None,
            refused: None,
            twice: false,
            missed: None,
            operations: Vec::new(),
            listings: 0,
        })))
    }
}

impl FakeIpvs {
    fn state(&self) -> MutexGuard<'_, IpvsState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The successful operations since the last call, in order.
    #[must_use]
    pub fn take_operations(&self) -> Vec<Operation> {
        std::mem::take(&mut self.state().operations)
    }

    /// The number of listings of virtual or real servers.
    #[must_use]
    pub fn listings(&self) -> usize {
        self.state().listings
    }

    /// Sets the connection counts of a real server; returns whether it exists.
    pub fn set_connections(&self, key: ServerKey, address: SocketAddr, connections: Connections) -> bool {
        let mut state = self.state();
        let real = state.virtuals.get_mut(&key).and_then(|(_, reals)| reals.get_mut(&address));
        real.map(|(_, has)| *has = connections).is_some()
    }

    /// Removes a scheduler.
    pub fn lose_scheduler(&self, name: &str) {
        self.state().without.insert(name.to_owned());
    }

    /// Makes every call fail with this error; `None` makes calls succeed.
    pub fn fail(&self, how: Option<fn() -> IpvsError>) {
        self.state().failing = how;
    }

    /// Makes every operation on servers of this address fail; `None` for no address.
    pub fn refuse(&self, address: Option<SocketAddr>) {
        self.state().refused = address;
    }

    /// Lists every entry twice, as the kernel may do during changes.
    pub fn list_twice(&self) {
        self.state().twice = true;
    }

    /// Omits a virtual server from the next listing, as the kernel may do during deletions.
    pub fn miss_once(&self, key: ServerKey) {
        self.state().missed = Some(key);
    }

    /// A virtual server with its real servers, sorted by address.
    #[must_use]
    pub fn server(&self, key: ServerKey) -> Option<(VirtualServer, Vec<RealServer>)> {
        let state = self.state();
        let (server, reals) = state.virtuals.get(&key)?;
        Some((*server, reals.values().map(|(real, _)| *real).collect()))
    }
}

/// All servers as `ipvsadm -S -n` prints them, sorted by key.
impl fmt::Display for FakeIpvs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, (server, reals)) in &self.state().virtuals {
            writeln!(f, "{server}")?;
            for (real, _) in reals.values() {
                writeln!(f, "-a {key} {real}")?;
            }
        }
        Ok(())
    }
}

impl IpvsState {
    /// The number of times each entry is listed.
    fn times(&self) -> usize {
        if self.twice { 2 } else { 1 }
    }

    fn check_failing(&mut self) -> Result<(), IpvsError> {
        self.failing.map_or(Ok(()), |how| Err(how()))
    }

    /// Applies an operation. The error is the kernel's error number.
    fn apply(&mut self, operation: &Operation) -> Result<(), i32> {
        let key = operation.key();
        let about = match operation {
            Operation::AddReal(_, real) | Operation::UpdateReal(_, real) => real.address,
            Operation::DeleteReal(_, address) => *address,
            _ => key.address,
        };
        if self.refused.is_some_and(|refused| refused == about || refused == key.address) {
            return Err(libc::ENOMEM);
        }
        match *operation {
            Operation::AddVirtual(server) => {
                if self.virtuals.contains_key(&key) {
                    return Err(libc::EEXIST);
                }
                self.schedulable(&server)?;
                self.virtuals.insert(key, (server, Reals::new()));
            }
            Operation::UpdateVirtual(server) => {
                if !self.virtuals.contains_key(&key) {
                    return Err(libc::ESRCH);
                }
                self.schedulable(&server)?;
                self.virtuals.entry(key).and_modify(|(present, _)| *present = server);
            }
            Operation::DeleteVirtual(_) => {
                self.virtuals.remove(&key).ok_or(libc::ESRCH)?;
            }
            Operation::AddReal(_, real) => {
                let reals = self.reals(key)?;
                possible(key, &real)?;
                if reals.contains_key(&real.address) {
                    return Err(libc::EEXIST);
                }
                reals.insert(real.address, (real, Connections::default()));
            }
            Operation::UpdateReal(_, real) => {
                let reals = self.reals(key)?;
                possible(key, &real)?;
                reals.get_mut(&real.address).ok_or(libc::ENOENT)?.0 = real;
            }
            Operation::DeleteReal(_, address) => {
                let reals = self.reals(key)?;
                reals.remove(&address).ok_or(libc::ENOENT)?;
            }
        }
        Ok(())
    }

    fn reals(&mut self, key: ServerKey) -> Result<&mut Reals, i32> {
        self.virtuals.get_mut(&key).map(|(_, reals)| reals).ok_or(libc::ESRCH)
    }

    fn schedulable(&self, server: &VirtualServer) -> Result<(), i32> {
        let name = server.scheduler.as_str();
        if !SCHEDULERS.contains(&name) || self.without.contains(name) {
            return Err(libc::ENOENT);
        }
        let prefix = server.persistence.map_or(server.address_bits(), |persistence| persistence.prefix);
        if !server.key.address.is_ipv4() && !(1..=128).contains(&prefix) {
            return Err(libc::EINVAL);
        }
        Ok(())
    }
}

/// Checks that the forwarding method supports the families: only tunnels connect different ones.
fn possible(key: ServerKey, real: &RealServer) -> Result<(), i32> {
    if key.address.is_ipv4() != real.address.is_ipv4() && real.forward != Forward::Tunnel {
        return Err(libc::EINVAL);
    }
    // The kernel's weights are signed.
    i32::try_from(real.weight).map(|_| ()).map_err(|_| libc::ERANGE)
}

impl IpvsTable for FakeIpvs {
    fn virtual_servers(&mut self, family: IpFamily, each: &mut dyn FnMut(VirtualServer)) -> Result<(), IpvsError> {
        let mut state = self.state();
        state.check_failing()?;
        state.listings += 1;
        let missed = state.missed.take();
        let of_family = |key: &ServerKey| IpFamily::of(&key.address.ip()) == family && missed != Some(*key);
        let servers: Vec<VirtualServer> =
            state.virtuals.iter().filter(|(key, _)| of_family(key)).map(|(_, (server, _))| *server).collect();
        let servers = servers.repeat(state.times());
        drop(state);
        servers.into_iter().for_each(each);
        Ok(())
    }

    fn real_servers(&mut self, of: ServerKey, each: &mut dyn FnMut(RealServer, Connections)) -> Result<(), IpvsError> {
        let mut state = self.state();
        state.check_failing()?;
        state.listings += 1;
        let reals: Vec<_> =
            state.virtuals.get(&of).map(|(_, reals)| reals.values().copied().collect()).unwrap_or_default();
        let reals = reals.repeat(state.times());
        drop(state);
        reals.into_iter().for_each(|(real, connections)| each(real, connections));
        Ok(())
    }

    fn list(&mut self, family: IpFamily, each: &mut dyn FnMut(ListedServer)) -> Result<(), IpvsError> {
        self.virtual_servers(family, &mut |server| each(ListedServer::Server(server, Statistics::default())))
    }

    fn list_real(
        &mut self,
        of: ServerKey,
        each: &mut dyn FnMut(RealServer, Connections, Statistics),
    ) -> Result<(), IpvsError> {
        self.real_servers(of, &mut |real, connections| each(real, connections, Statistics::default()))
    }

    fn apply(&mut self, operations: &[Operation], failed: &mut dyn FnMut(usize, IpvsError)) -> Result<(), IpvsError> {
        self.state().check_failing()?;
        for (index, operation) in operations.iter().enumerate() {
            let outcome = self.state().apply(operation);
            match outcome {
                Ok(()) => self.state().operations.push(*operation),
                Err(errno) => failed(index, IpvsError::of(operation, Some(errno), io::Error::from_raw_os_error(errno))),
            }
        }
        Ok(())
    }

    fn timeouts(&mut self) -> Result<Timeouts, IpvsError> {
        let mut state = self.state();
        state.check_failing()?;
        Ok(state.timeouts)
    }

    fn set_timeouts(&mut self, timeouts: Timeouts) -> Result<(), IpvsError> {
        let mut state = self.state();
        state.check_failing()?;
        let now = &mut state.timeouts;
        for (now, new) in
            [(&mut now.tcp, timeouts.tcp), (&mut now.tcp_fin, timeouts.tcp_fin), (&mut now.udp, timeouts.udp)]
        {
            if new > 0 {
                *now = new;
            }
        }
        Ok(())
    }
}
