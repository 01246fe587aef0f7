//! The composition root: the only place that builds families, kernels, backends, threads and servers.
//!
//! In: flags. Out: a running proxy, until it is told to stop. Must not know: rules.

use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use proxier::IpFamily;
use proxier::backend::Backend;
use proxier::cleaner::FlowCleaner;
use proxier::iptables::Iptables;
use proxier::kernel::{Choice, Host, SystemConntrack, SystemHost, SystemIptables, choose_flavour, packet_counters};
use proxier::model::Config;
use proxier::proxier::Proxier;
use proxier::track::Change;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::cli::Flags;
use crate::config::{self, Settings};
use crate::health::Health;
use crate::health_checks::Reports;
use crate::http::Pages;
use crate::logging;
use crate::metrics::{Feature, Metrics};
use crate::reporter::Reporter;
use crate::servers::{Plan, Servers};
use crate::source::{self, Families};

/// The one that is built.
const MODE: &str = "iptables";

/// Runs the proxy until SIGTERM or SIGINT.
///
/// # Errors
/// A configuration that cannot be used; no usable iptables; no way to the API server.
pub fn run(flags: &Flags) -> Result<(), String> {
    proxier::kernel::memory::share();
    let settings = settings(flags)?;
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    if settings.tcp_be_liberal {
        set_tcp_be_liberal()?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    runtime.block_on(serve(flags, &settings))
}

/// The settings that flags and their configuration file come to.
///
/// # Errors
/// If they make no sense.
pub fn settings(flags: &Flags) -> Result<Settings, String> {
    let mut file = match &flags.config {
        None => flags.to_file(),
        Some(path) => {
            let (file, warnings) = config::read(path).map_err(|error| error.to_string())?;
            warnings.iter().for_each(|warning| warn!("{warning}"));
            file
        }
    };
    if !flags.hostname_override.is_empty() {
        file.hostname_override.clone_from(&flags.hostname_override);
    }
    let hostname = nix::unistd::gethostname().unwrap_or_default();
    config::settings(&file, &hostname.to_string_lossy()).map_err(|error| error.to_string())
}

fn set_tcp_be_liberal() -> Result<(), String> {
    const NAME: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";
    SystemHost.set_sysctl(NAME, 1).map_err(|error| format!("conntrack.tcpBeLiberal: cannot set {NAME}: {error}"))
}

async fn serve(flags: &Flags, settings: &Settings) -> Result<(), String> {
    let health = Arc::new(Health::new(settings.proxier.periods.sync, flags.objects.is_some()));
    let metrics = Arc::new(metrics(settings).map_err(|error| format!("cannot make metrics: {error}"))?);
    // The ports open before anything can fail, so that one can ask why nothing works.
    let (mut servers, reports) = Servers::start(plan(flags, settings), &health, &metrics);

    // As process 1 of a container, it would not be heard before this.
    let mut stop = Stop::new()?;
    let (families, threads) = start_families(&settings.proxier, &health, &metrics, reports)?;
    let source = source::start(flags, settings, families, health, &metrics).await?;
    let result = tokio::select! {
        signal = stop.wait() => { info!("{signal}: stopping; the rules stay"); Ok(()) }
        error = source => Err(error),
        problem = servers.failed() => Err(problem),
    };
    // The last senders went with the source: the families finish what they are at and end.
    let ended = tokio::task::spawn_blocking(|| threads.into_iter().all(|thread| thread.join().is_ok())).await;
    servers.stop().await;
    match ended {
        Ok(true) => result,
        _ => Err("a family's thread panicked".to_owned()),
    }
}

fn metrics(settings: &Settings) -> prometheus::Result<Metrics> {
    let metrics = Metrics::new(MODE)?;
    let gate = |name, stage, enabled| Feature { name, stage, enabled };
    metrics.features(&[
        gate("AllowServiceExternalIPs", "", !settings.proxier.hide_external_ips),
        gate("ComponentFlagz", "BETA", true),
        gate("ComponentStatusz", "BETA", true),
    ])?;
    metrics.packets(Box::new(packet_counters))?;
    Ok(metrics)
}

fn plan(flags: &Flags, settings: &Settings) -> Plan {
    let config = serde_json::json!({
        "kind": "KubeProxyConfiguration",
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "hostnameOverride": settings.proxier.node_name,
        "healthzBindAddress": settings.healthz,
        "metricsBindAddress": settings.metrics,
        "mode": MODE,
    });
    let shown = |name: &str, value: String| (name.to_owned(), value);
    let flagz = vec![
        shown("config", flags.config.as_ref().map(|path| path.display().to_string()).unwrap_or_default()),
        shown("hostname-override", flags.hostname_override.clone()),
        shown("master", flags.master.clone()),
        shown("v", flags.verbosity.to_string()),
    ];
    Plan {
        health: Some(settings.healthz),
        metrics: Some(settings.metrics),
        hard_fail: false,
        pages: Pages {
            mode: MODE.to_owned(),
            configz: config.to_string(),
            flagz: Some(flagz),
            statusz: true,
            profiling: false,
            set_verbosity: logging::set_verbosity,
        },
        addresses: Box::new(|family| SystemHost.addresses(family)),
    }
}

/// One thread for each family that works on this host.
fn start_families(
    config: &Config,
    health: &Arc<Health>,
    metrics: &Arc<Metrics>,
    reports: Reports,
) -> Result<(Families, Vec<JoinHandle<()>>), String> {
    let choice = choose_flavour();
    let flavour = choice.flavour.map_or_else(|| "unknown".to_owned(), |flavour| flavour.to_string());
    info!("Using iptables mode, iptables flavour {flavour}: {}", choice.reason);
    let (mut families, mut threads, mut problems) = (Families::default(), Vec::new(), Vec::new());
    for family in IpFamily::ALL {
        match backend(family, config, &choice) {
            Ok(backend) => {
                let (sender, changes) = mpsc::channel::<Change>();
                let reporter = Box::new(Reporter::new(family, health.clone(), metrics.clone(), reports.clone()));
                let proxier =
                    Proxier::new(family, config.clone(), backend, reporter).with_cleaner(cleaner(family, config));
                let name = format!("proxier-{family}");
                let thread = std::thread::Builder::new().name(name).spawn(move || proxier.run(&changes));
                threads.push(thread.map_err(|error| format!("cannot start a thread: {error}"))?);
                families.insert(family, sender);
            }
            Err(problem) => problems.push(format!("{family}: {problem}")),
        }
    }
    match problems.len() {
        0 => info!("Running in dual-stack mode"),
        1 => info!("Running in single-stack mode: {}", problems[0]),
        _ => return Err(format!("iptables is not available on this host: {}", problems.join("; "))),
    }
    Ok((families, threads))
}

fn backend(family: IpFamily, config: &Config, choice: &Choice) -> Result<Box<dyn Backend>, String> {
    family.available().map_err(str::to_owned)?;
    let tools = SystemIptables::find(family, choice).map_err(|error| error.to_string())?;
    Ok(Box::new(Iptables::new(family, config.clone(), Box::new(tools), Box::new(SystemHost))))
}

fn cleaner(family: IpFamily, config: &Config) -> FlowCleaner {
    FlowCleaner::new(family, config.node_port_addresses.clone(), Box::new(SystemConntrack), Box::new(SystemHost))
}

struct Stop {
    term: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Stop {
    fn new() -> Result<Self, String> {
        let listen = |kind| signal(kind).map_err(|error| format!("cannot listen for signals: {error}"));
        Ok(Self { term: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.term.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
