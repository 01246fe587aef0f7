//! The composition root: the only place that builds families, kernels, backends, threads and servers.
//!
//! In: flags. Out: a running proxy, until it is told to stop. Must not know: rules.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;

use proxier::IpFamily;
use proxier::backend::Backend;
use proxier::cleaner::FlowCleaner;
use proxier::iptables::Iptables;
use proxier::kernel::{Choice, Host, SystemConntrack, SystemHost, SystemIptables, choose_flavour, packet_counters};
use proxier::model::{Config, Mode};
use proxier::proxier::Proxier;
use proxier::track::Change;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::cli::Line;
use crate::config::doubts::{self, Known};
use crate::config::{self, Settings};
use crate::config_watch::{self, ConfigWatch};
use crate::health::Health;
use crate::health_checks::Reports;
use crate::http::Pages;
use crate::logging;
use crate::metrics::{Feature, Metrics};
use crate::reporter::Reporter;
use crate::servers::{Plan, Servers};
use crate::source::{self, Families};

/// What kube-proxy says of settings that are probably not meant.
const DOUBTFUL: &str = "Kube-proxy configuration may be incomplete or incorrect";

/// Runs the proxy until SIGTERM or SIGINT, or does what else the flags ask for.
///
/// # Errors
/// A configuration that cannot be used or that changed; no usable iptables; no way to the API server.
pub fn run(line: &Line) -> Result<(), String> {
    proxier::kernel::memory::share();
    let (settings, watch) = settings(line)?;
    let flags = &line.flags.general;
    if let Some(path) = &flags.write_config_to {
        return write_config(&settings, path);
    }
    doubts::of_configuration(&settings).iter().for_each(|doubt| warn!(err = doubt, "{DOUBTFUL}"));
    let asked = [("cleanup", flags.cleanup.0), ("init-only", flags.init_only.0)];
    if let Some((name, _)) = asked.iter().find(|(_, asked)| *asked) {
        return Err(format!("flag --{name} is not built yet"));
    }
    if settings.mode != Mode::Iptables {
        return Err(format!("mode {} is not built yet; iptables is", settings.mode));
    }
    if settings.conntrack.tcp_be_liberal {
        set_tcp_be_liberal()?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start: {error}"))?;
    runtime.block_on(serve(line, &settings, watch))
}

/// The configuration, checked, and its file, watched from now on.
fn settings(line: &Line) -> Result<(Settings, Option<ConfigWatch>), String> {
    let complete = line.complete().map_err(|error| error.to_string())?;
    let watch = match (&line.flags.general.config, complete.text) {
        (Some(path), Some(text)) => Some(ConfigWatch::new(path, text)),
        _ => None,
    };
    let hostname = nix::unistd::gethostname().unwrap_or_default();
    let settings = config::settings(complete.file, &hostname.to_string_lossy());
    if let Ok(settings) = &settings {
        logging::apply(&settings.logging);
        if settings.logging.verbosity >= 1 {
            line.shown.iter().for_each(|(name, value)| info!("FLAG: --{name}={value:?}"));
        }
    }
    if !complete.strict_errors.is_empty() {
        let error = format!("strict decoding error: {}", complete.strict_errors.join(", "));
        info!(err = error, "Using lenient decoding as strict decoding failed");
    }
    complete.warnings.iter().for_each(|warning| warn!("{warning}"));
    let settings = settings.map_err(|error| error.to_string())?;
    settings.warnings.iter().for_each(|warning| warn!("{warning}"));
    Ok((settings, watch))
}

fn write_config(settings: &Settings, path: &Path) -> Result<(), String> {
    let text = config::to_yaml(&settings.file)?;
    std::fs::write(path, text).map_err(|error| format!("--write-config-to {}: {error}", path.display()))?;
    info!(file = %path.display(), "Wrote configuration");
    Ok(())
}

fn set_tcp_be_liberal() -> Result<(), String> {
    const NAME: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";
    SystemHost.set_sysctl(NAME, 1).map_err(|error| format!("conntrack.tcpBeLiberal: cannot set {NAME}: {error}"))
}

async fn serve(line: &Line, settings: &Settings, watch: Option<ConfigWatch>) -> Result<(), String> {
    let flags = &line.flags;
    let health = Arc::new(Health::new(settings.proxier.periods.sync, flags.source.objects.is_some()));
    let metrics = Arc::new(metrics(settings).map_err(|error| format!("cannot make metrics: {error}"))?);
    // The ports open before anything can fail, so that one can ask why nothing works.
    let (mut servers, reports) = Servers::start(plan(line, settings), &health, &metrics);

    // As process 1 of a container, it would not be heard before this.
    let mut stop = Stop::new()?;
    let (families, threads) = start_families(settings, &health, &metrics, reports)?;
    let source = source::start(&flags.source, settings, families, health, &metrics).await?;
    let result = tokio::select! {
        signal = stop.wait() => { info!("{signal}: stopping; the rules stay"); Ok(()) }
        error = source => Err(error),
        problem = servers.failed() => Err(problem),
        message = config_watch::updated(watch) => Err(message),
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
    let metrics = Metrics::new(settings.mode.name())?;
    let features = config::gates::KNOWN.iter().map(|gate| Feature {
        name: gate.name,
        stage: gate.stage.name(),
        enabled: settings.gates.enabled(gate.name),
    });
    metrics.features(&features.collect::<Vec<_>>())?;
    metrics.packets(Box::new(packet_counters))?;
    Ok(metrics)
}

fn plan(line: &Line, settings: &Settings) -> Plan {
    Plan {
        health: settings.healthz,
        metrics: settings.metrics,
        hard_fail: settings.bind_address_hard_fail,
        pages: Pages {
            mode: settings.mode.to_string(),
            configz: serde_json::to_string(&settings.file).unwrap_or_else(|error| error.to_string()),
            flagz: settings.gates.enabled("ComponentFlagz").then(|| line.shown.clone()),
            statusz: settings.gates.enabled("ComponentStatusz"),
            profiling: settings.enable_profiling,
            set_verbosity: logging::set_verbosity,
        },
        addresses: Box::new(|family| SystemHost.addresses(family)),
    }
}

/// One thread for each family that works on this host.
fn start_families(
    settings: &Settings,
    health: &Arc<Health>,
    metrics: &Arc<Metrics>,
    reports: Reports,
) -> Result<(Families, Vec<JoinHandle<()>>), String> {
    let config = &settings.proxier;
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
    doubts_of_families(settings, &families)?;
    match problems.len() {
        0 => info!("Running in dual-stack mode"),
        1 => info!("Running in single-stack mode: {}", problems[0]),
        _ => return Err(format!("iptables is not available on this host: {}", problems.join("; "))),
    }
    Ok((families, threads))
}

/// What is odd about the configuration on a host of one family, or on one whose first address was said. What depends on
/// the Node is known only later.
fn doubts_of_families(settings: &Settings, families: &Families) -> Result<(), String> {
    let served: Vec<IpFamily> = families.names().collect();
    let said = settings.proxier.bind_address.map(|ip| IpFamily::of(&ip));
    let primary = match (said, &served[..]) {
        (Some(family), _) | (None, &[family]) => family,
        _ => return Ok(()),
    };
    let known = Known { primary, dual_stack: served.len() == 2, pod_cidrs: Vec::new() };
    let found = doubts::of_node(settings, &known);
    found.warnings.iter().for_each(|doubt| warn!(err = doubt, "{DOUBTFUL}"));
    found.fatal.map_or(Ok(()), Err)
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
