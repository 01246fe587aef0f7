//! Detects which families a mode supports on this host and builds a backend for each; part of the composition root.

use netfilter::IpFamily;
use netfilter::kernel::{
    Flavour, FlavourChoice, IptablesTool, NativeIptables, SystemHost, SystemIpSets, SystemIptables, SystemIpvs,
    SystemLinks, SystemNftables, ToolError, WriterPriority, WriterRole, detect_flavour, kernel_release, retry,
};
use proxier::backend::Backend;
use proxier::iptables::Iptables;
use proxier::ipvs::{self, Ipvs};
use proxier::leftovers::ActiveMode;
use proxier::model::Mode;
use proxier::nftables::{self, Nftables};
use proxier::xtables::FLAVOUR_HINTS;
use tracing::{info, warn};

use crate::cli::IptablesBackend;
use crate::config::ValidatedConfig;

/// The environment variable that skips the kernel version check of nftables mode.
const SKIP_KERNEL_VERSION_CHECK: &str = "KUBE_PROXY_NFTABLES_SKIP_KERNEL_VERSION_CHECK";

/// A backend for each family that this host supports.
pub type Backends = Vec<(IpFamily, Box<dyn Backend>)>;

/// The backends that this host supports.
pub struct DetectedBackends {
    /// The mode whose state is in use; the state of all others is leftover.
    pub running: ActiveMode,
    /// A backend for each family.
    pub backends: Backends,
    /// The lock that leftover cleanup shares with the backends.
    pub priority: WriterPriority,
}

impl DetectedBackends {
    /// The families that have a backend.
    pub fn families(&self) -> Vec<IpFamily> {
        self.backends.iter().map(|(family, _)| *family).collect()
    }
}

/// Detects the usable families of the configured mode.
///
/// `writer` is who writes rules of the nf_tables flavour of iptables.
///
/// # Errors
/// Why no family is usable.
pub fn detect_backends(settings: &ValidatedConfig, writer: IptablesBackend) -> Result<DetectedBackends, String> {
    if settings.mode == Mode::Nftables {
        return detect_nftables(settings);
    }
    let choice = detect_flavour(&FLAVOUR_HINTS);
    let flavour = choice.flavour.map_or_else(|| "unknown".to_owned(), |flavour| flavour.to_string());
    info!("Using {} mode, iptables flavour {flavour}: {}", settings.mode, choice.reason);
    let native = writes_natively(&choice, writer)?;
    for unread in &choice.unread {
        warn!("Failed to read the kubelet's iptables flavour hint, flavour {flavour} may be wrong: {unread}");
    }
    if settings.mode == Mode::Ipvs {
        check_ipvs(settings).map_err(|problem| format!("can't use the IPVS proxier: {problem}"))?;
    }
    let (mut backends, mut problems, priority) = (Vec::new(), Vec::new(), WriterPriority::default());
    for family in IpFamily::ALL {
        match backend(family, settings, (&choice, native), &priority) {
            Ok(backend) => backends.push((family, backend)),
            Err(problem) => problems.push(format!("{family}: {problem}")),
        }
    }
    log_families(&problems).map_err(|problems| format!("iptables is not available on this host: {problems}"))?;
    let running = match settings.mode {
        Mode::Ipvs => ActiveMode::Ipvs(choice.flavour),
        _ => ActiveMode::Iptables(choice.flavour),
    };
    Ok(DetectedBackends { running, backends, priority })
}

/// Whether this program writes iptables rules itself.
///
/// # Errors
/// If only programs can write rules of the flavour, and there are none.
fn writes_natively(choice: &FlavourChoice, writer: IptablesBackend) -> Result<bool, String> {
    let has_programs = choice.has_programs();
    match (choice.flavour, writer) {
        (Some(Flavour::Nft), IptablesBackend::Native) => {
            info!("Writing iptables rules natively, without the iptables programs");
        }
        (Some(Flavour::Legacy), _) if !has_programs => {
            return Err(format!(
                "iptables flavour legacy needs the iptables programs, which are not in PATH: {}; use an image with them, \
                 or nftables mode",
                choice.reason
            ));
        }
        (None, _) if !has_programs => {
            let unread = choice.unread.join("; ");
            return Err(format!("cannot determine the iptables flavour: {}: {unread}", choice.reason));
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// [`detect_backends`] on a blocking thread: tools may be slow, while HTTP and signals are still served.
pub async fn detect_backends_in_background(
    settings: &ValidatedConfig,
    writer: IptablesBackend,
) -> Result<DetectedBackends, String> {
    let settings = settings.clone();
    let found = tokio::task::spawn_blocking(move || detect_backends(&settings, writer)).await;
    found.map_err(|error| format!("cannot detect iptables: {error}"))?
}

/// A backend of nftables mode for each family that the kernel supports.
fn detect_nftables(settings: &ValidatedConfig) -> Result<DetectedBackends, String> {
    info!("Using {} mode", settings.mode);
    if std::env::var_os(SKIP_KERNEL_VERSION_CHECK).is_none_or(|value| value.is_empty()) {
        nftables::check_release(&kernel_release()).map_err(|error| error.to_string())?;
    }
    let (mut backends, mut problems) = (Vec::new(), Vec::new());
    for family in IpFamily::ALL {
        let mut kernel = Box::new(SystemNftables::default());
        let usable = family.available().map_err(str::to_owned);
        let check = || nftables::check(&mut *kernel, family);
        let usable = usable.and_then(|()| retry(check, |_| true).map_err(|error| error.to_string()));
        match usable {
            Ok(()) => {
                let mode = Nftables::new(family, settings.proxier.clone(), kernel, Box::new(SystemHost));
                backends.push((family, Box::new(mode) as Box<dyn Backend>));
            }
            Err(problem) => problems.push(format!("{family}: {problem}")),
        }
    }
    log_families(&problems).map_err(|problems| format!("unable to create proxier: {problems}"))?;
    Ok(DetectedBackends { running: ActiveMode::Nftables, backends, priority: WriterPriority::default() })
}

/// Logs which families are served; fails with the problems if none is.
fn log_families(problems: &[String]) -> Result<(), String> {
    match problems {
        [] => info!("Running in dual-stack mode"),
        [problem] => info!("Running in single-stack mode: {problem}"),
        _ => return Err(problems.join("; ")),
    }
    Ok(())
}

fn backend(
    family: IpFamily,
    settings: &ValidatedConfig,
    (choice, native): (&FlavourChoice, bool),
    priority: &WriterPriority,
) -> Result<Box<dyn Backend>, String> {
    family.available().map_err(str::to_owned)?;
    let find = || -> Result<Box<dyn IptablesTool>, ToolError> {
        let role = WriterRole::Foreground(priority.clone());
        Ok(match native {
            true => Box::new(NativeIptables::find(family)?.as_writer(role)),
            false => Box::new(SystemIptables::find(family, choice)?.as_writer(role)),
        })
    };
    let tool = retry(find, |error| !error.is_missing()).map_err(|error| error.to_string())?;
    let (config, host) = (settings.proxier.clone(), Box::new(SystemHost));
    if settings.mode != Mode::Ipvs {
        return Ok(Box::new(Iptables::new(family, config, tool, host)));
    }
    let kernel = ipvs::Kernel {
        tool,
        table: Box::new(SystemIpvs::load().map_err(|error| error.to_string())?),
        sets: Box::new(SystemIpSets::open().map_err(|error| error.to_string())?),
        links: Box::new(SystemLinks::open().map_err(|error| error.to_string())?),
        host,
    };
    let mode = Ipvs::new(family, config, settings.ipvs.clone(), kernel).map_err(|error| error.to_string())?;
    Ok(Box::new(mode))
}

/// Checks once what both families need.
fn check_ipvs(settings: &ValidatedConfig) -> Result<(), String> {
    let mut table = SystemIpvs::load().map_err(|error| error.to_string())?;
    ipvs::check(&mut table, &settings.ipvs).map_err(|error| error.to_string())
}
