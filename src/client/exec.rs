//! Exec plugins: programs that issue credentials, run when credentials are needed or expire.

use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::exec_protocol::{self, API_VERSIONS, PluginCredentials};
use super::kubeconfig::{ExecConfig, non_empty};

/// How long a plugin may run. client-go has no limit.
const RUN_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a plugin runs before that is logged.
const SLOW_RUN_NOTICE: Duration = Duration::from_secs(5);
/// The shortest time between two runs, even if the API server rejects the credentials.
const RUN_INTERVAL: Duration = Duration::from_secs(5);
/// Credentials are renewed this long before they expire, or in the last tenth of their life if that is shorter.
const RENEW_BEFORE_EXPIRY: SignedDuration = SignedDuration::from_secs(60);
/// The most bytes of a plugin's output.
const MAX_OUTPUT_BYTES: u64 = 1 << 20;

/// A plugin and the credentials that it issued last.
pub struct ExecPlugin {
    config: ExecConfig,
    command: String,
    api_version: String,
    /// The cluster in `KUBERNETES_EXEC_INFO`.
    cluster: Option<Value>,
    issued: Mutex<Option<CachedCredentials>>,
    /// The number of runs.
    runs: AtomicU32,
    /// Serializes runs. When the last one ended, and its error.
    last_run: tokio::sync::Mutex<Option<(Instant, Result<(), String>)>>,
}

#[derive(Clone)]
struct CachedCredentials {
    credentials: Arc<PluginCredentials>,
    /// When to renew them.
    renew_at: Option<Timestamp>,
}

impl ExecPlugin {
    /// Validates the configuration without running the plugin. `cluster`: for `provideClusterInfo`.
    ///
    /// # Errors
    /// A missing or unsupported field.
    pub fn new(config: ExecConfig, cluster: impl FnOnce() -> Result<Value, String>) -> Result<Self, String> {
        let invalid = |why: &str| format!("exec.{why}");
        let command = non_empty(config.command.clone()).ok_or_else(|| invalid("command is not set"))?;
        let api_version = non_empty(config.api_version.clone()).ok_or_else(|| invalid("apiVersion is not set"))?;
        if !API_VERSIONS.contains(&&*api_version) {
            return Err(invalid(&format!("apiVersion {api_version:?} is none of {}", API_VERSIONS.join(", "))));
        }
        match config.interactive_mode.as_deref().unwrap_or_default() {
            "Never" | "IfAvailable" => {}
            "" if api_version == API_VERSIONS[1] => {}
            "" => return Err(invalid("interactiveMode is not set")),
            "Always" => return Err(invalid("interactiveMode is Always, and kube-proxy has no terminal")),
            other => return Err(invalid(&format!("interactiveMode {other:?} is none of Never, IfAvailable, Always"))),
        }
        let cluster = config.provide_cluster_info.then(cluster).transpose()?;
        let (issued, runs, last_run) = Default::default();
        Ok(Self { config, command, api_version, cluster, issued, runs, last_run })
    }

    /// The credentials to use now.
    ///
    /// Runs the plugin if there are none or they are about to expire; if that fails, unexpired credentials are used.
    ///
    /// # Errors
    /// No valid credentials, and why the plugin issues none.
    pub async fn credentials(self: &Arc<Self>) -> Result<Arc<PluginCredentials>, String> {
        match self.current() {
            Some(CachedCredentials { credentials, renew_at }) if renew_at.is_none_or(|at| Timestamp::now() < at) => {
                Ok(credentials)
            }
            outdated => {
                let failure = self.renew(outdated.as_ref().map(|current| &current.credentials)).await.err();
                let Some(CachedCredentials { credentials, .. }) = self.current() else {
                    return Err(failure.unwrap_or_else(|| format!("exec plugin {}: no credentials", self.command)));
                };
                match failure {
                    Some(failure) if credentials.expires.is_some_and(|end| end <= Timestamp::now()) => Err(failure),
                    _ => Ok(credentials),
                }
            }
        }
    }

    /// Renews credentials after a response of 401, unless they were renewed already. A failure is logged.
    pub async fn rejected(self: &Arc<Self>, credentials: &Arc<PluginCredentials>) {
        debug!("API server rejected the credentials of exec plugin {}", self.command);
        let _ = self.renew(Some(credentials)).await;
    }

    fn current(&self) -> Option<CachedCredentials> {
        self.issued.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs the plugin, unless `outdated` was renewed meanwhile or it just ran. Uses a separate task, so that the
    /// caller's deadline does not end the run.
    async fn renew(self: &Arc<Self>, outdated: Option<&Arc<PluginCredentials>>) -> Result<(), String> {
        let (plugin, outdated) = (Arc::clone(self), outdated.map(Arc::clone));
        let task = tokio::spawn(async move {
            let mut last_run = plugin.last_run.lock().await;
            let current = plugin.current();
            let is_replaced = match (&current, &outdated) {
                (Some(current), Some(outdated)) => !Arc::ptr_eq(&current.credentials, outdated),
                (current, None) => current.is_some(),
                (None, Some(_)) => false,
            };
            if is_replaced {
                return Ok(());
            }
            if let Some((at, result)) = &*last_run
                && at.elapsed() < RUN_INTERVAL
            {
                return result.clone();
            }
            let run = plugin.runs.fetch_add(1, Ordering::Relaxed) + 1;
            let result = plugin.run().await;
            // The number shows that several requests report the same failure.
            let result = result.map_err(|problem| format!("exec plugin {}: run {run}: {problem}", plugin.command));
            let result = result.map(|issued| plugin.take(issued));
            if let (Err(problem), Some(_)) = (&result, &current) {
                warn!("Failed to renew credentials, using the last ones until they expire: {problem}");
            }
            *last_run = Some((Instant::now(), result.clone()));
            result
        });
        task.await.unwrap_or_else(|error| Err(format!("exec plugin {}: {error}", self.command)))
    }

    fn take(&self, issued: PluginCredentials) {
        let now = Timestamp::now();
        let renew_at = issued.expires.map(|end| {
            let life = end.duration_since(now);
            end.checked_sub(RENEW_BEFORE_EXPIRY.min(life / 10).max(SignedDuration::ZERO)).unwrap_or(end)
        });
        let current = CachedCredentials { credentials: Arc::new(issued), renew_at };
        *self.issued.lock().unwrap_or_else(PoisonError::into_inner) = Some(current);
    }

    /// Runs the plugin once.
    async fn run(&self) -> Result<PluginCredentials, String> {
        let mut command = Command::new(&self.command);
        command.args(self.config.args.iter().flatten()).process_group(0).kill_on_drop(true);
        for variable in self.config.env.iter().flatten() {
            command.env(&variable.name, variable.value.as_deref().unwrap_or_default());
        }
        command.env("KUBERNETES_EXEC_INFO", exec_protocol::input(&self.api_version, self.cluster.as_ref()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| match &self.config.install_hint {
            Some(hint) if error.kind() == std::io::ErrorKind::NotFound => {
                format!("{error}; {}", hint.split_whitespace().collect::<Vec<_>>().join(" "))
            }
            _ => error.to_string(),
        })?;
        let mut group = ProcessGroup(child.id().and_then(|id| i32::try_from(id).ok()));
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let run = async { tokio::join!(child.wait(), read(stdout), read(stderr)) };
        let run = timeout(RUN_TIMEOUT, run);
        tokio::pin!(run);
        let ended = match timeout(SLOW_RUN_NOTICE, &mut run).await {
            Ok(ended) => ended,
            Err(_) => {
                let command = &self.command;
                info!(
                    "Waiting for exec plugin {command}: no credentials after {SLOW_RUN_NOTICE:?}, killing it after {RUN_TIMEOUT:?}"
                );
                run.await
            }
        };
        let (status, stdout, stderr) = ended.map_err(|_| format!("it did not end within {RUN_TIMEOUT:?}"))?;
        // It exited by itself: its background processes are left alone, as in client-go.
        group.0 = None;
        let status = status.map_err(|error| error.to_string())?;
        if !status.success() {
            let stderr = String::from_utf8_lossy(&stderr);
            let last = stderr.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
            let last: String = last.chars().filter(|c| !c.is_control()).take(300).collect();
            return Err(format!("it failed ({status}): {last:?}"));
        }
        exec_protocol::output(&stdout, &self.api_version, &self.command)
    }
}

/// The process group of a running plugin, killed when dropped: plugins start other programs.
struct ProcessGroup(Option<i32>);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(id) = self.0 {
            let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
        }
    }
}

/// The output of a plugin; bytes beyond the limit are discarded.
async fn read(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut text = Vec::new();
    if let Some(mut pipe) = pipe {
        let _ = (&mut pipe).take(MAX_OUTPUT_BYTES).read_to_end(&mut text).await;
        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
    }
    text
}

#[cfg(test)]
#[path = "exec_tests.rs"]
mod tests;
