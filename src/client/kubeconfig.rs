//! The kubeconfig file: the fields that client-go's `clientcmd` reads.
//!
//! One file and its current context. Several files in `KUBECONFIG` are not merged: kube-proxy takes one path.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use proxier::track::plain_words;
use serde::Deserialize;
use serde_json::Value;

/// A kubeconfig file. Unknown fields are ignored, as in client-go. Among entries with one name the first wins.
#[derive(Deserialize)]
pub struct Kubeconfig {
    clusters: Option<Vec<NamedCluster>>,
    users: Option<Vec<NamedUser>>,
    contexts: Option<Vec<NamedContext>>,
    #[serde(rename = "current-context")]
    current_context: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Option<Cluster>,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: Option<User>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Option<Context>,
}

#[derive(Clone, Default, Deserialize)]
struct Context {
    cluster: Option<String>,
    user: Option<String>,
}

/// How to reach and authenticate an API server.
#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Cluster {
    /// `https://host:port/prefix`; client-go also accepts `host:port`.
    pub server: Option<String>,
    /// The expected name in the server's certificate; default: the host of `server`.
    pub tls_server_name: Option<String>,
    /// Accept any server certificate.
    pub insecure_skip_tls_verify: Option<bool>,
    /// A PEM file of authorities.
    pub certificate_authority: Option<PathBuf>,
    /// Base64 of PEM; overrides `certificate_authority`.
    pub certificate_authority_data: Option<String>,
    /// `http`, `https` or `socks5` URL of a proxy; default: the environment's.
    pub proxy_url: Option<String>,
    /// Do not ask for compressed responses.
    pub disable_compression: Option<bool>,
    /// Extensions, one of which is passed to exec plugins.
    pub extensions: Option<Vec<Extension>>,
}

/// A named extension of a cluster.
#[derive(Clone, Deserialize)]
pub struct Extension {
    /// `client.authentication.k8s.io/exec`: for exec plugins.
    pub name: String,
    /// Its value, uninterpreted.
    pub extension: Value,
}

/// How the proxy authenticates.
#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct User {
    /// A PEM file with the certificate, then its chain.
    pub client_certificate: Option<PathBuf>,
    /// Base64 of PEM; overrides `client_certificate`.
    pub client_certificate_data: Option<String>,
    /// A PEM file with the private key.
    pub client_key: Option<PathBuf>,
    /// Base64 of PEM; overrides `client_key`.
    pub client_key_data: Option<String>,
    /// A bearer token.
    pub token: Option<String>,
    /// A file with a bearer token; takes precedence over `token`.
    #[serde(rename = "tokenFile")]
    pub token_file: Option<PathBuf>,
    /// Basic authentication.
    pub username: Option<String>,
    /// Basic authentication.
    pub password: Option<String>,
    /// The user to impersonate.
    #[serde(rename = "as")]
    pub impersonate: Option<String>,
    /// Its UID.
    pub as_uid: Option<String>,
    /// Its groups.
    pub as_groups: Option<Vec<String>>,
    /// Its extra fields.
    pub as_user_extra: Option<BTreeMap<String, Vec<String>>>,
    /// Built-in cloud authentication, removed from client-go in 1.26.
    pub auth_provider: Option<AuthProvider>,
    /// A credential plugin.
    pub exec: Option<ExecConfig>,
}

/// Built-in cloud authentication.
#[derive(Clone, Deserialize)]
pub struct AuthProvider {
    /// For instance `gcp`.
    pub name: Option<String>,
}

/// A program that prints credentials.
#[derive(Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ExecConfig {
    /// `client.authentication.k8s.io/v1` or `/v1beta1`.
    pub api_version: Option<String>,
    /// A path, or a name to look up in `PATH`.
    pub command: Option<String>,
    /// Its arguments.
    pub args: Option<Vec<String>>,
    /// Additional environment variables.
    pub env: Option<Vec<ExecEnv>>,
    /// Shown if the program is missing.
    pub install_hint: Option<String>,
    /// Whether the plugin receives the cluster's address and authorities.
    pub provide_cluster_info: bool,
    /// `Never`, `IfAvailable` or `Always`.
    pub interactive_mode: Option<String>,
}

/// A variable of a plugin's environment.
#[derive(Clone, Deserialize)]
pub struct ExecEnv {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: Option<String>,
}

/// The cluster and the user of the current context.
pub struct SelectedContext {
    /// `kubeconfig FILE: context "NAME"`, a prefix of messages.
    pub origin: String,
    /// The name of the cluster.
    pub cluster_name: String,
    /// The cluster; its paths are absolute.
    pub cluster: Cluster,
    /// The name of the user.
    pub user_name: String,
    /// The user; its paths are absolute.
    pub user: User,
}

impl Kubeconfig {
    /// Reads a file and selects its current context. `server` replaces the cluster's (`--master`).
    ///
    /// # Errors
    /// Unreadable file, invalid YAML, missing context, cluster or user. The message names the file and the field.
    pub fn select(path: &Path, server: Option<&str>) -> Result<SelectedContext, String> {
        let file = format!("kubeconfig {}", path.display());
        let text = std::fs::read_to_string(path).map_err(|error| format!("{file}: {error}"))?;
        let mut selected = Self::select_from(&text, &file)?;
        if let Some(server) = server {
            selected.cluster.server = Some(server.to_owned());
        }
        selected.make_absolute(path.parent().unwrap_or(Path::new("")));
        Ok(selected)
    }

    /// Selects the current context of a file's text. `file`: its name, for messages.
    ///
    /// # Errors
    /// As [`Self::select`].
    pub fn select_from(text: &str, file: &str) -> Result<SelectedContext, String> {
        // Only the first line of an error: the library adds an excerpt of the file, which may contain a secret.
        let line = |error: &dyn fmt::Display| plain_words(error.to_string().lines().next().unwrap_or_default());
        let value: Value = serde_saphyr::from_str(text).map_err(|error| format!("{file}: {}", line(&error)))?;
        let config: Result<Option<Self>, _> = serde_path_to_error::deserialize(value);
        let config = config.map_err(|error| format!("{file}: {}: {}", error.path(), line(error.inner())))?;
        config.ok_or_else(|| format!("{file}: it is empty"))?.current(file)
    }

    fn current(self, file: &str) -> Result<SelectedContext, String> {
        let name = non_empty(self.current_context).ok_or_else(|| format!("{file}: current-context is not set"))?;
        let context = self.contexts.into_iter().flatten().find(|context| context.name == name);
        let context = context.ok_or_else(|| format!("{file}: current-context {name:?} is not in contexts"))?;
        let origin = format!("{file}: context {name:?}");
        let Context { cluster, user } = context.context.unwrap_or_default();
        let cluster_name = non_empty(cluster).ok_or_else(|| format!("{origin}: cluster is not set"))?;
        let user_name = non_empty(user).ok_or_else(|| format!("{origin}: user is not set"))?;
        let cluster = self.clusters.into_iter().flatten().find(|cluster| cluster.name == cluster_name);
        let cluster = cluster.ok_or_else(|| format!("{origin}: cluster {cluster_name:?} is not in clusters"))?;
        let user = self.users.into_iter().flatten().find(|user| user.name == user_name);
        let user = user.ok_or_else(|| format!("{origin}: user {user_name:?} is not in users"))?;
        let (cluster, user) = (cluster.cluster.unwrap_or_default(), user.user.unwrap_or_default());
        Ok(SelectedContext { origin, cluster_name, cluster, user_name, user })
    }
}

impl SelectedContext {
    /// Resolves paths, and commands with a slash, relative to the kubeconfig's folder.
    fn make_absolute(&mut self, folder: &Path) {
        let user = &mut self.user;
        let paths = [
            &mut self.cluster.certificate_authority,
            &mut user.client_certificate,
            &mut user.client_key,
            &mut user.token_file,
        ];
        for path in paths {
            *path = path.take().filter(|path| !path.as_os_str().is_empty()).map(|path| folder.join(path));
        }
        if let Some(command) = user.exec.as_mut().and_then(|exec| exec.command.as_mut())
            && command.contains('/')
        {
            *command = folder.join(&*command).to_string_lossy().into_owned();
        }
    }
}

/// The text if it is set and not empty: both mean unset in a kubeconfig.
pub fn non_empty(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(text: &str) -> Result<SelectedContext, String> {
        let folder =
            std::env::temp_dir().join(format!("kubeconfig-{}-{:?}", std::process::id(), std::thread::current().id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("config"), text).expect("written");
        Kubeconfig::select(&folder.join("config"), None)
    }

    #[test]
    fn missing_parts_are_named_with_file_and_context() {
        let rest = "clusters: [{name: c, cluster: {server: x}}]\nusers: [{name: u}]\n";
        for (text, message) in [
            ("", "it is empty"),
            ("users: 3", "users"),
            ("5", "expected a mapping"),
            ("kind: Config", "current-context is not set"),
            ("current-context: x", "current-context \"x\" is not in contexts"),
            ("current-context: x\ncontexts: [{name: x}]", "context \"x\": cluster is not set"),
            ("current-context: x\ncontexts: [{name: x, context: {cluster: c}}]", "context \"x\": user is not set"),
            (
                "current-context: x\ncontexts: [{name: x, context: {cluster: d, user: u}}]",
                "context \"x\": cluster \"d\" is not in clusters",
            ),
            (
                "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: w}}]",
                "context \"x\": user \"w\" is not in users",
            ),
        ] {
            let rest = if text.contains("context: {") { rest } else { "" };
            let error = select(&format!("{text}\n{rest}")).err().unwrap_or_else(|| panic!("{text} is accepted"));
            assert!(error.contains("/config: ") && error.contains(message) && !error.contains('\n'), "{text}: {error}");
        }
    }

    #[test]
    fn relative_paths_are_relative_to_the_file() {
        let text = "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n\
                    clusters: [{name: c, cluster: {server: s, certificate-authority: pki/ca.crt}}]\n\
                    users: [{name: u, user: {client-certificate: /c.crt, client-key: '', exec: {command: bin/get}}}]\n";
        let selected = select(text).expect("a context");
        let authority = selected.cluster.certificate_authority.expect("a file");
        assert!(authority.is_absolute() && authority.ends_with("pki/ca.crt"), "{authority:?}");
        assert_eq!(selected.user.client_certificate.as_deref(), Some(Path::new("/c.crt")));
        assert_eq!(selected.user.client_key, None);
        let command = selected.user.exec.and_then(|exec| exec.command).expect("a command");
        assert!(command.starts_with('/') && command.ends_with("/bin/get"), "{command}");
    }
}
