//! Starts the reader of the running mode.

use std::io;
use std::sync::mpsc::channel;
use std::time::Duration;

use netfilter::IpFamily;
use netfilter::ipvs::ServerKey;
use netfilter::kernel::{Flavour, SystemIpSets, SystemIpvs};
use proxier::leftovers::ActiveMode;
use proxier::model::config::ServiceMetrics;
use proxier::traffic::{CountedTraffic, DestinationNames, name_at};
use proxier::{iptables, ipvs, nftables};

use super::{ReadCounts, SelectedServices, ServiceTraffic, TrafficSelection};
use crate::config::ValidatedConfig;
use crate::config::file::ServiceMetricsFile;
use crate::inspect::model::Model;
use crate::metrics::ReadTraffic;

/// How long a proxier may be busy before the names that it gave last are used.
const NAMES_TIMEOUT: Duration = Duration::from_millis(100);

/// Starts the reader if `serviceMetrics` is on; `services`: those of its label selector.
///
/// # Errors
/// If its thread cannot be started, or the iptables flavour is unknown.
pub fn start(
    settings: &ValidatedConfig,
    running: ActiveMode,
    families: &[IpFamily],
    model: Model,
    services: Option<SelectedServices>,
) -> Result<Option<ReadTraffic>, String> {
    let level = settings.proxier.service_metrics;
    if level == ServiceMetrics::Off {
        return Ok(None);
    }
    let read: ReadCounts = match running {
        ActiveMode::Nftables => Box::new(move |family| nftables::read_traffic(family, level)),
        ActiveMode::Iptables(flavour) => {
            let flavour: Flavour = flavour.ok_or("service metrics need the flavour of iptables, which is unknown")?;
            Box::new(move |family| {
                let connections = iptables::read_connections(family, flavour)?;
                Ok(CountedTraffic { connections, refused: iptables::read_refusals(family, flavour)? })
            })
        }
        ActiveMode::Ipvs(_) => {
            let mut reader = IpvsReader { level, model, names: [IpFamily::V4, IpFamily::V6].map(|of| (of, None)) };
            Box::new(move |family| reader.read(family))
        }
    };
    let file = &settings.file.service_metrics;
    let selection = TrafficSelection {
        namespaces: file.namespaces.iter().map(|name| name.trim().into()).collect(),
        services,
        limit: usize::try_from(file.limit.unwrap_or(ServiceMetricsFile::LIMIT)).unwrap_or_default(),
        endpoints: level == ServiceMetrics::Endpoints,
        ipvs: matches!(running, ActiveMode::Ipvs(_)),
    };
    let traffic = ServiceTraffic::start(families, selection, read);
    let traffic = traffic.map_err(|error| format!("cannot start a thread: {error}"))?;
    Ok(Some(Box::new(move || traffic.read())))
}

/// Reads IPVS, with the proxiers' names of destinations.
struct IpvsReader {
    level: ServiceMetrics,
    model: Model,
    names: [(IpFamily, Option<DestinationNames>); 2],
}

impl IpvsReader {
    fn read(&mut self, family: IpFamily) -> io::Result<CountedTraffic> {
        let Some((_, names)) = self.names.iter_mut().find(|(of, _)| *of == family) else {
            return Ok(CountedTraffic::default());
        };
        let (answer, answers) = channel();
        self.model.request_names(family, answer);
        match answers.recv_timeout(NAMES_TIMEOUT) {
            Ok(newest) => *names = Some(newest),
            // A sync is running: the reader does not wait for its end.
            Err(_) if names.is_some() => {}
            Err(_) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the proxier has not named its Services yet"));
            }
        }
        let names = names.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let mut table = SystemIpvs::open().map_err(io::Error::other)?;
        let name = |key: ServerKey| name_at(names, key.address, key.protocol);
        let connections = ipvs::read_traffic(&mut table, family, self.level, &name).map_err(io::Error::other)?;
        let refused = ipvs::read_refusals(&mut SystemIpSets::open().map_err(io::Error::other)?, family, names);
        Ok(CountedTraffic { connections, refused: refused.map_err(io::Error::other)? })
    }
}
