//! The composition root: builds families, kernel access, backends, threads and servers, and runs them until a signal.

mod backends;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::kernel::{
    Host, SystemAddressWatch, SystemClientProbe, SystemConntrack, SystemHost, ignored_signals, packet_counters,
};
use proxier::cleaner::FlowCleaner;
use proxier::ender::{ConnectionEnder, EnderKernel};
use proxier::ipvs;
use proxier::leftovers;
use proxier::mailbox::mailbox;
use proxier::model::{Config, Mode};
use proxier::nftables;
use proxier::proxier::Proxier;
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::timeout;
use tracing::{info, warn};

use self::backends::{DetectedBackends, detect_backends, detect_backends_in_background};
use crate::cleanup;
use crate::cli::{CommandLine, IptablesBackend};
use crate::client::{self, ApiClient};
use crate::config::consistency::{self, INCONSISTENT};
use crate::config::{self, ValidatedConfig};
use crate::config_watch::{self, ConfigWatch};
use crate::dump;
use crate::events::{self, EventQueue, EventRetryPolicy, EventSender};
use crate::health::Health;
use crate::health_checks::HealthCheckSender;
use crate::http::{Pages, RulesPage};
use crate::inspect::{gate::Syncing, model::Model};
use crate::localhost_proxy::{self, LocalhostLimits, LocalhostSender};
use crate::logging;
use crate::metrics::{Feature, Metrics};
use crate::node;
use crate::reporter::Reporter;
use crate::servers::{self, Servers, ServersConfig};
use crate::service_metrics::{self, SelectedServices};
use crate::setup;
use crate::source::{self, FamilySenders, Outages, Receivers};
use crate::stop::StopSignals;

/// How long the API server may take to accept the last events.
const EVENT_FLUSH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long running syncs may take after a signal. With [`SERVER_STOP_TIMEOUT`] it is less than 10 s.
const SYNC_STOP_TIMEOUT: Duration = Duration::from_secs(6);
/// How long HTTP responses under way may take after a signal.
const SERVER_STOP_TIMEOUT: Duration = Duration::from_millis(3500);

/// Runs the proxy until SIGTERM, SIGINT or SIGHUP, or does the one-time job that a flag asks for.
///
/// # Errors
/// A configuration that is invalid or changed; no usable backend; no API server configured; a Node that contradicts the
/// configuration.
pub fn run(line: &CommandLine) -> Result<(), String> {
    netfilter::kernel::memory::share();
    let raised = netfilter::kernel::descriptors::raise();
    let (settings, watch) = settings(line)?;
    if let Err(error) = raised {
        warn!("Failed to raise the soft limit on open files to the hard limit: {error}");
    }
    let flags = &line.flags.general;
    if let Some(path) = &flags.write_config_to {
        return write_config(&settings, path);
    }
    if flags.cleanup.0 {
        return cleanup::cleanup();
    }
    consistency::check_config(&settings).iter().for_each(|doubt| warn!(err = doubt, "{INCONSISTENT}"));
    if flags.init_only.0 {
        return init_only(&settings, line.flags.iptables.iptables_backend);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start the async runtime: {error}"))?;
    let result = runtime.block_on(serve(line, &settings, watch));
    // A hanging tool must not delay the exit.
    runtime.shutdown_background();
    result
}

/// `--init-only`: does what needs more privileges than a later run without it. Needs no API server (behaviour.yaml
/// I22).
fn init_only(settings: &ValidatedConfig, writer: IptablesBackend) -> Result<(), String> {
    setup::conntrack(settings, &mut SystemHost)?;
    for (family, mut backend) in detect_backends(settings, writer)?.backends {
        backend.prepare().map_err(|error| format!("{family}: {error}"))?;
        info!("{family}: System initialized and --init-only specified");
    }
    Ok(())
}

/// Loads and validates the configuration, and starts watching its file.
fn settings(line: &CommandLine) -> Result<(ValidatedConfig, Option<ConfigWatch>), String> {
    let complete = line.complete().map_err(|error| error.to_string())?;
    let watch = match (&line.flags.general.config, complete.text) {
        (Some(path), Some(text)) => ConfigWatch::new(path, text),
        _ => None,
    };
    let settings = config::validate(complete.file, &hostname());
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

fn write_config(settings: &ValidatedConfig, path: &Path) -> Result<(), String> {
    let text = config::to_yaml(&settings.file)?;
    std::fs::write(path, text).map_err(|error| format!("--write-config-to {}: {error}", path.display()))?;
    info!(file = %path.display(), "Wrote configuration");
    Ok(())
}

async fn serve(line: &CommandLine, settings: &ValidatedConfig, watch: Option<ConfigWatch>) -> Result<(), String> {
    let flags = &line.flags.source;
    let health = Arc::new(Health::new(settings.proxier.periods.sync, flags.objects.is_some()));
    let metrics = Arc::new(metrics(settings).map_err(|error| format!("cannot create metrics: {error}"))?);
    let (events, event_queue) = events::event_queue();
    // The servers start before anything can fail, so that health and metrics can be read in any case.
    let (syncing, model) = (Syncing::default(), Model::default());
    let servers_config = servers_config(line, settings, events.clone(), (&syncing, &model));
    let (mut servers, reports) = Servers::start(servers_config, &health, &metrics);
    tokio::task::yield_now().await;

    // Without this, the kernel ignores these signals for process 1 of a container.
    let mut stop = StopSignals::new(ignored_signals())?;
    setup::conntrack(settings, &mut SystemHost)?;
    let client = match &flags.objects {
        Some(_) => None,
        None => Some(connect(settings, &flags.master, &metrics, event_queue).await?),
    };
    let found = tokio::select! {
        () = stop.wait() => return Ok(()),
        found = detect_backends_in_background(settings, line.flags.iptables.iptables_backend) => found?,
    };
    let selected = SelectedServices::new(&settings.file.service_metrics.selector)?;
    let traffic = service_metrics::start(settings, found.running, &found.families(), model.clone(), selected.clone())?;
    if let Some(traffic) = traffic {
        metrics.service_traffic(traffic).map_err(|error| format!("cannot create metrics: {error}"))?;
    }
    let (families, threads) = start_families(settings, found, &health, &metrics, reports, &syncing)?;
    setup::oom_score(settings);
    let senders = Arc::new(families.clone());
    model.is(&senders);
    let (news, node) = unbounded_channel();
    let node = node::track(settings.clone(), families.clone(), node);
    let outages = Outages::default();
    let read = outages.clone();
    metrics.outages(Box::new(move || read.durations())).map_err(|error| format!("cannot create metrics: {error}"))?;
    let api = client.map(|client| (client, outages));
    let receivers = Receivers { families, node: news, health, selected };
    let source = source::start(flags, settings, receivers, api, None)?;
    events.starting();
    let result = tokio::select! {
        () = stop.wait() => Ok(()),
        error = source => Err(error),
        error = node => Err(error.to_string()),
        failure = servers.failed() => {
            events.port_failed(failure.reason, failure.problem.clone());
            events.flush(EVENT_FLUSH_TIMEOUT).await;
            Err(failure.problem)
        }
        message = config_watch::updated(watch) => Err(message),
    };
    drop(senders);
    stop_families(threads, servers).await.and(result)
}

/// Connects to the API server and publishes queued events there. Returns the client of objects.
async fn connect(
    settings: &ValidatedConfig,
    master: &str,
    metrics: &Metrics,
    event_queue: EventQueue,
) -> Result<ApiClient, String> {
    let clients = client::connect(settings, master, metrics).await?;
    let (node, host) = (settings.proxier.node_name.clone(), hostname());
    tokio::spawn(async move {
        event_queue.publish(clients.events, &node, &host, EventRetryPolicy::default()).await;
    });
    Ok(clients.objects)
}

/// Waits for the families to finish the current sync and for the servers to answer, both with a timeout.
///
/// The families end with their last sender, which the caller has dropped.
async fn stop_families(threads: Vec<JoinHandle<()>>, servers: Servers) -> Result<(), String> {
    let joined = tokio::task::spawn_blocking(|| threads.into_iter().all(|thread| thread.join().is_ok()));
    let ended = timeout(SYNC_STOP_TIMEOUT, joined).await;
    if timeout(SERVER_STOP_TIMEOUT, servers.stop()).await.is_err() {
        warn!("Stopped without waiting for HTTP answers under way any longer");
    }
    match ended {
        Ok(Ok(true)) => Ok(()),
        Ok(_) => Err("a family's thread panicked".to_owned()),
        // The kernel kills the tool when this process ends.
        Err(_) => {
            warn!("A sync did not end within {SYNC_STOP_TIMEOUT:?}: stopped without it, rules left as they are");
            Ok(())
        }
    }
}

fn hostname() -> String {
    nix::unistd::gethostname().unwrap_or_default().to_string_lossy().into_owned()
}

fn metrics(settings: &ValidatedConfig) -> prometheus::Result<Metrics> {
    let metrics = Metrics::new(settings.mode.name())?;
    let features = config::gates::KNOWN.iter().map(|gate| Feature {
        name: gate.name,
        stage: gate.stage.name(),
        enabled: settings.gates.enabled(gate.name),
    });
    metrics.features(&features.collect::<Vec<_>>())?;
    metrics.packets(Box::new(packet_counters))?;
    if settings.proxier.nftables_localhost_node_ports {
        metrics.rejected_packets(Box::new(nftables::rejected_localhost_packets))?;
    }
    Ok(metrics)
}

/// `/debug/rules` if `--debug-rules` is set. The report is compared with the proxy's own objects.
fn rules_page(line: &CommandLine, settings: &ValidatedConfig, syncing: &Syncing, model: &Model) -> Option<RulesPage> {
    let (settings, begun, model, syncing_now) = (settings.clone(), syncing.clone(), model.clone(), syncing.clone());
    let report = Box::new(move |service: Option<&str>, json| {
        let page = dump::page(&settings, &model, &|| begun.begun(), (service, json));
        netfilter::kernel::memory::release();
        page
    });
    line.flags.servers.debug_rules.0.then(|| RulesPage::new(report, move || syncing_now.now()))
}

fn servers_config(
    line: &CommandLine,
    settings: &ValidatedConfig,
    events: EventSender,
    (syncing, model): (&Syncing, &Model),
) -> ServersConfig {
    ServersConfig {
        health: settings.healthz,
        metrics: settings.metrics,
        hard_fail: settings.bind_address_hard_fail,
        pages: Pages {
            mode: settings.mode.to_string(),
            configz: serde_json::to_string(&settings.file).unwrap_or_else(|error| error.to_string()),
            flagz: settings.gates.enabled("ComponentFlagz").then(|| line.shown.clone()),
            statusz: settings.gates.enabled("ComponentStatusz"),
            rules: rules_page(line, settings, syncing, model),
            profiling: settings.enable_profiling,
            set_verbosity: logging::set_verbosity,
        },
        addresses: Box::new(|family| SystemHost.addresses(family)),
        events,
        localhost_proxy: proxies_localhost(&settings.proxier),
    }
}

/// Starts one thread per family.
fn start_families(
    settings: &ValidatedConfig,
    DetectedBackends { running, backends, priority }: DetectedBackends,
    health: &Arc<Health>,
    metrics: &Arc<Metrics>,
    reports: HealthCheckSender,
    syncing: &Syncing,
) -> Result<(FamilySenders, Vec<JoinHandle<()>>), String> {
    let (config, began) = (&settings.proxier, Instant::now());
    let localhost = localhost_proxy(config, metrics)?;
    let (mut families, mut threads) = (FamilySenders::default(), Vec::new());
    for (family, backend) in backends {
        let (sender, changes) = mailbox();
        health.watch_thread(family, sender.activity());
        let reporter = Reporter::new(family, health.clone(), metrics.clone(), reports.clone());
        let reporter = Box::new(reporter.with_localhost(localhost.clone()));
        let priority = priority.clone();
        let removal = move || {
            leftovers::remove(family, Some(running), began.elapsed() < ipvs::GRACEFUL_TERMINATION_PERIOD, &priority)
        };
        let failed = |error| format!("cannot start a thread: {error}");
        let leftovers = leftovers::CleanupWorker::start(family, Box::new(removal)).map_err(failed)?;
        let proxier = Proxier::new(family, config.clone(), syncing.watch(backend), reporter)
            .with_cleaner(cleaner(family, config))
            .with_ender(ender(family, config))
            .with_address_watch(Box::new(address_watch(family, settings)))
            .with_leftovers(leftovers);
        let name = format!("proxier-{family}");
        let thread = std::thread::Builder::new().name(name).spawn(move || proxier.run(&changes));
        threads.push(thread.map_err(failed)?);
        families.insert(family, sender);
    }
    Ok((families, threads))
}

fn proxies_localhost(config: &Config) -> bool {
    IpFamily::ALL.into_iter().any(|family| config.proxies_localhost(family))
}

/// Starts the localhost proxy if it has any family to serve.
fn localhost_proxy(config: &Config, metrics: &Metrics) -> Result<Option<LocalhostSender>, String> {
    if !proxies_localhost(config) {
        return Ok(None);
    }
    let limits = LocalhostLimits::share(servers::localhost_descriptors());
    let started = localhost_proxy::start(limits, metrics.localhost.clone());
    started.map(Some).map_err(|error| format!("cannot start the localhost proxy: {error}"))
}

fn address_watch(family: IpFamily, settings: &ValidatedConfig) -> SystemAddressWatch {
    // In IPVS mode each Service change alters the addresses of the proxy's own device.
    let ignored = (settings.mode == Mode::Ipvs).then_some(ipvs::DEVICE);
    SystemAddressWatch::new(family, ignored, settings.proxier.periods.sync)
}

fn cleaner(family: IpFamily, config: &Config) -> FlowCleaner {
    FlowCleaner::new(family, config.node_port_addresses.clone(), Box::new(SystemConntrack), Box::new(SystemHost))
}

fn ender(family: IpFamily, config: &Config) -> ConnectionEnder {
    let kernel = EnderKernel {
        table: Box::new(SystemConntrack),
        host: Box::new(SystemHost),
        clients: Box::new(SystemClientProbe),
    };
    ConnectionEnder::new(family, config.node_port_addresses.clone(), kernel)
}
