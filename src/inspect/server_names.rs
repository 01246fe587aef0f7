//! Reads virtual servers with the names of their Services, which only objects have.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::ipvs::ServerKey;
use netfilter::kernel::{IpvsError, SystemIpvs};
use proxier::ipvs;
use proxier::model::config::ServiceMetrics;
use proxier::model::{NamespacedName, Protocol, ServicePortName};
use proxier::traffic::{DestinationNames, TrafficSample, name_at};
use proxier_inspect::node::read_error::ReadError;

use super::arguments::Sources;
use super::running::{Running, as_seen_by};
use super::{objects, proxy_processes};

/// The least time between two loads of objects.
const RELOAD: Duration = Duration::from_secs(30);

/// Virtual servers, and the names of those that belong to a Service.
#[derive(Debug)]
pub struct NamedServers {
    sources: Sources,
    names: BTreeMap<IpFamily, DestinationNames>,
    /// When names were loaded last; `None`: never, as in other modes.
    loaded: Option<Instant>,
    /// Why they could not be loaded.
    failure: Option<String>,
    /// The servers that had no name after the last load: other programs', or of Services that came later.
    unnamed: BTreeSet<ServerKey>,
}

impl NamedServers {
    /// No names yet: they are loaded when a virtual server is seen.
    pub fn new(sources: Sources) -> Self {
        Self { sources, names: BTreeMap::new(), loaded: None, failure: None, unnamed: BTreeSet::new() }
    }

    /// Reads the traffic of a family's virtual servers and of their endpoints. Without IPVS in the kernel there are none.
    ///
    /// # Errors
    /// If the table cannot be read. Names that cannot be loaded are no error: servers are named by address then.
    pub fn read(&mut self, family: IpFamily) -> Result<Vec<TrafficSample>, ReadError> {
        let failed = |error: IpvsError| {
            ReadError::new(family, "virtual servers", &error, matches!(error, IpvsError::NotPermitted))
        };
        let Some(mut table) = SystemIpvs::open_if_present().map_err(failed)? else { return Ok(Vec::new()) };
        let (samples, unnamed) = self.named(&mut table, family).map_err(failed)?;
        let is_new = self.failure.is_some() || unnamed.iter().any(|server| !self.unnamed.contains(server));
        let is_due = self.loaded.is_none_or(|loaded| loaded.elapsed() >= RELOAD);
        self.remember(family, unnamed);
        if !is_new || !is_due {
            return Ok(samples);
        }
        self.load();
        let (samples, unnamed) = self.named(&mut table, family).map_err(failed)?;
        self.remember(family, unnamed);
        Ok(samples)
    }

    /// Which servers have no names, and why, in a sentence.
    pub fn note(&self) -> Option<String> {
        match (&self.failure, self.unnamed.len()) {
            (_, 0) => None,
            (Some(why), _) => Some(format!("virtual servers are shown by address: {why}")),
            (None, count) => Some(format!("{count} virtual servers belong to no Service that is known: not shown")),
        }
    }

    fn remember(&mut self, family: IpFamily, unnamed: BTreeSet<ServerKey>) {
        self.unnamed.retain(|server| server.address.is_ipv4() != (family == IpFamily::V4));
        self.unnamed.extend(unnamed);
    }

    /// The samples, and the servers without a name.
    fn named(
        &self,
        table: &mut SystemIpvs,
        family: IpFamily,
    ) -> Result<(Vec<TrafficSample>, BTreeSet<ServerKey>), IpvsError> {
        let unnamed = RefCell::new(BTreeSet::new());
        let name = |key: ServerKey| {
            let named = self.names.get(&family).and_then(|names| name_at(names, key.address, key.protocol));
            if named.is_none() {
                unnamed.borrow_mut().insert(key);
            }
            named.or_else(|| self.failure.as_ref().and_then(|_| by_address(key)))
        };
        let samples = ipvs::read_traffic(table, family, ServiceMetrics::Endpoints, &name)?;
        Ok((samples, unnamed.into_inner()))
    }

    /// Loads names; those of the last load stay if this one fails.
    fn load(&mut self) {
        match load(&self.sources) {
            Ok(names) => (self.names, self.failure) = (names, None),
            Err(why) => self.failure = Some(why),
        }
        self.loaded = Some(Instant::now());
    }
}

/// A virtual server's address in place of a name.
fn by_address(key: ServerKey) -> Option<ServicePortName> {
    let service = NamespacedName::new("", &key.address.to_string());
    Some(ServicePortName { service, port: "".into(), protocol: Protocol::of_number(key.protocol)? })
}

/// The names in the objects of the running proxy, or of the arguments if those name any.
fn load(sources: &Sources) -> Result<BTreeMap<IpFamily, DestinationNames>, String> {
    let running = if sources.leave_configuration_open() { Running::find(&proxy_processes())? } else { None };
    let resolved = match running {
        Some(running) => sources.of_running(running)?,
        None => sources.resolve()?,
    };
    if !resolved.has_objects() {
        return Err("give --kubeconfig, --config or --objects for names".to_owned());
    }
    let trackers = as_seen_by(resolved.files_of, || objects::load(&resolved, None, &Mutex::default()))??;
    Ok(trackers.into_iter().map(|(family, tracker)| (family, tracker.destination_names())).collect())
}
