//! The arguments that `dump`, `diagnose` and `preflight` share: the source of objects and the proxy's configuration.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::running::Running;
use crate::cli::{self, CommandLine, EffectiveConfig};
use crate::config::{self, GoDuration, KubeProxyConfiguration, ValidatedConfig};

/// Where objects come from, and how the proxy is configured.
#[derive(Clone, Debug, Default, Args)]
pub struct Sources {
    /// The proxy's KubeProxyConfiguration file: how rules should be, and which kubeconfig to use
    #[arg(long, value_name = "FILE", help_heading = "What should be")]
    pub config: Option<PathBuf>,
    /// The name of this node, if it is not the host's
    #[arg(long, value_name = "NAME", help_heading = "What should be")]
    pub hostname_override: Option<String>,
    /// Take Services and EndpointSlices from YAML files
    #[arg(long, value_name = "PATH", help_heading = "What should be")]
    pub objects: Option<PathBuf>,
    /// Take them from the API server of this kubeconfig
    #[arg(long, value_name = "FILE", help_heading = "What should be")]
    pub kubeconfig: Option<PathBuf>,
    /// Address of the API server, instead of the kubeconfig's
    #[arg(long, value_name = "URL", help_heading = "What should be")]
    pub master: Option<String>,
    /// Networks of the cluster's pods, if there is no configuration file
    #[arg(long, value_name = "CIDR[,CIDR]", help_heading = "What should be")]
    pub cluster_cidr: Option<String>,
    /// How long to wait for objects
    #[arg(long, value_name = "DURATION", default_value = "10s", help_heading = "What should be")]
    pub timeout: GoDuration,
    /// Other flags that the proxy was started with
    #[arg(last = true, value_name = "PROXY FLAGS", help_heading = "What should be")]
    pub proxy_flags: Vec<String>,
}

/// The settings and the source of objects that the arguments select.
#[derive(Clone, Debug)]
pub struct ResolvedSources {
    /// The configuration that the proxy should have.
    pub settings: ValidatedConfig,
    /// Where files with objects are.
    pub objects: Option<PathBuf>,
    /// The API server's address, if it is not the kubeconfig's.
    pub master: String,
    /// How long to wait for objects.
    pub timeout: Duration,
    /// The process whose files these are; `None`: this one's.
    pub files_of: Option<u32>,
    /// The running proxy that the configuration was taken from, in one line.
    pub taken_from: Option<String>,
}

impl Sources {
    /// The settings of the proxy and the source of objects.
    ///
    /// # Errors
    /// If the arguments or the configuration are invalid.
    pub fn resolve(&self) -> Result<ResolvedSources, String> {
        self.resolve_for_mode(None)
    }

    /// Whether nothing says which mode the proxy is in.
    #[must_use]
    pub fn leave_mode_open(&self) -> bool {
        self.config.is_none() && !self.proxy_flags.iter().any(|word| word.contains("mode"))
    }

    /// Resolves the arguments for a proxy in this mode; `None`: the configuration decides.
    ///
    /// # Errors
    /// If the arguments or the configuration are invalid.
    pub fn resolve_for_mode(&self, mode: Option<&str>) -> Result<ResolvedSources, String> {
        let (line, complete) = self.complete(mode)?;
        let mut settings = validated(complete.file)?;
        if let Some(path) = &self.kubeconfig {
            // Beside a configuration file the proxy would ignore it; who gives it here means it.
            settings.client.kubeconfig = Some(path.clone());
        }
        let source = &line.flags.source;
        Ok(ResolvedSources {
            settings,
            objects: self.objects.clone().or_else(|| source.objects.clone()),
            master: self.master.clone().unwrap_or_else(|| source.master.clone()),
            timeout: self.timeout.to_std(),
            files_of: None,
            taken_from: None,
        })
    }

    /// The settings that the same proxy would have in nftables mode.
    ///
    /// # Errors
    /// If the arguments or the configuration are invalid there.
    pub fn in_nftables_mode(&self) -> Result<ValidatedConfig, String> {
        self.complete(None).and_then(|(_, complete)| validated(complete.in_nftables_mode))
    }

    /// The command line that these arguments stand for, and its configuration.
    fn complete(&self, mode: Option<&str>) -> Result<(CommandLine, EffectiveConfig), String> {
        let mut arguments = vec!["kube-proxy".to_owned()];
        let mut add = |name: &str, value: Option<String>| {
            arguments.extend(value.map(|value| format!("--{name}={value}")));
        };
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        add("config", path(&self.config));
        add("hostname-override", self.hostname_override.clone());
        add("kubeconfig", path(&self.kubeconfig));
        add("cluster-cidr", self.cluster_cidr.clone());
        add("proxy-mode", mode.map(str::to_owned));
        arguments.extend(self.proxy_flags.iter().cloned());
        let line = cli::parse(arguments).map_err(|stop| stop.text.trim_end().to_owned())?;
        let complete = line.complete().map_err(|error| error.to_string())?;
        Ok((line, complete))
    }

    /// Whether nothing says how the proxy is configured: then a running one does.
    #[must_use]
    pub fn leave_configuration_open(&self) -> bool {
        self.config.is_none() && self.cluster_cidr.is_none() && self.proxy_flags.is_empty()
    }

    /// The settings that a running proxy would have in nftables mode.
    ///
    /// # Errors
    /// If the arguments or the configuration are invalid there.
    pub fn of_running_in_nftables_mode(&self, running: Running) -> Result<ValidatedConfig, String> {
        let file = running.in_nftables_mode;
        let hostname_override = self.hostname_override.clone().unwrap_or(file.hostname_override);
        validated(KubeProxyConfiguration { hostname_override, ..file })
    }

    /// The settings of a running proxy; where objects come from is as the arguments say, if they do.
    ///
    /// # Errors
    /// If the arguments or the configuration are invalid.
    pub fn of_running(&self, running: Running) -> Result<ResolvedSources, String> {
        let mut file = running.file;
        file.hostname_override = self.hostname_override.clone().unwrap_or(file.hostname_override);
        let mut settings = validated(file)?;
        let (mut objects, mut master, mut files_of) = (running.objects, running.master, running.pid);
        if self.objects.is_some() || self.kubeconfig.is_some() || self.master.is_some() {
            (objects, master, files_of) = (self.objects.clone(), self.master.clone().unwrap_or_default(), None);
            settings.client.kubeconfig.clone_from(&self.kubeconfig);
        }
        let source = match (&objects, &settings.client.kubeconfig) {
            (Some(path), _) => format!("objects from {}", path.display()),
            (None, Some(path)) => format!("kubeconfig {}", path.display()),
            (None, None) if !master.is_empty() => format!("API server {master}"),
            (None, None) => "no source of objects".to_owned(),
        };
        let cidrs = if settings.file.cluster_cidr.is_empty() { "none" } else { &settings.file.cluster_cidr };
        let taken_from = format!(
            "Configuration: mode {}, cluster CIDRs {cidrs}, node {}, {source}; taken from {}",
            settings.mode, settings.proxier.node_name, running.taken_from
        );
        let timeout = self.timeout.to_std();
        Ok(ResolvedSources { settings, objects, master, timeout, files_of, taken_from: Some(taken_from) })
    }
}

/// The validated configuration of a proxy on this host.
fn validated(file: KubeProxyConfiguration) -> Result<ValidatedConfig, String> {
    let hostname = nix::unistd::gethostname().unwrap_or_default();
    config::validate(file, &hostname.to_string_lossy()).map_err(|error| error.to_string())
}

impl ResolvedSources {
    /// Whether there is a source of objects to ask.
    #[must_use]
    pub fn has_objects(&self) -> bool {
        self.objects.is_some() || self.settings.client.kubeconfig.is_some() || !self.master.is_empty()
    }
}
