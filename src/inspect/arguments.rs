//! The arguments that all commands for looking at a node have.
//!
//! In: arguments. Out: where objects come from and how the proxy is configured. Must not know: what is looked for.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};

use crate::cli::{self, Cli, Flags};
use crate::config::{Settings, parse_duration};
use crate::run;

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
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration, help_heading = "What should be")]
    pub timeout: Duration,
    /// Other flags that the proxy was started with
    #[arg(last = true, value_name = "PROXY FLAGS", help_heading = "What should be")]
    pub proxy_flags: Vec<String>,
}

impl Sources {
    /// The proxy's flags and settings.
    ///
    /// # Errors
    /// If they make no sense.
    pub fn settings(&self) -> Result<(Flags, Settings), String> {
        let mut arguments = vec!["kube-proxy".to_owned()];
        let mut add = |name: &str, value: Option<String>| {
            arguments.extend(value.map(|value| format!("--{name}={value}")));
        };
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        add("config", path(&self.config));
        add("hostname-override", self.hostname_override.clone());
        add("objects", path(&self.objects));
        add("kubeconfig", path(&self.kubeconfig));
        add("master", self.master.clone());
        add("cluster-cidr", self.cluster_cidr.clone());
        arguments.extend(self.proxy_flags.iter().cloned());
        let (arguments, _) = cli::normalise(arguments)?;
        let flags = Cli::try_parse_from(arguments).map_err(|error| error.to_string().trim_end().to_owned())?.flags;
        let mut settings = run::settings(&flags)?;
        if let Some(path) = &self.kubeconfig {
            settings.kubeconfig = Some(path.clone());
        }
        Ok((flags, settings))
    }

    /// Whether there is a source of objects to ask.
    #[must_use]
    pub fn has_objects(&self, flags: &Flags, settings: &Settings) -> bool {
        flags.objects.is_some() || settings.kubeconfig.is_some() || !flags.master.is_empty()
    }
}
