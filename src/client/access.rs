//! Finds the API server and the credentials in a kubeconfig, `--master` or the Pod's service account.

use std::path::Path;
use std::sync::Arc;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use tracing::{error, info, warn};

use super::credentials::Credentials;
use super::exec::ExecPlugin;
use super::exec_protocol;
use super::kubeconfig::{Cluster, Kubeconfig, SelectedContext, User, non_empty};
use super::material::{Authorities, ConfigOrigins, IdentitySource};
use super::pem::Pem;
use super::proxy::Proxy;
use super::server_url::ServerUrl;
use super::token::{TokenFile, bearer};

/// Where a Pod's service account is mounted.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A server and the credentials for it.
pub struct ApiAccess {
    /// The server's URL.
    pub server: ServerUrl,
    /// The expected name in its certificate.
    pub server_name: String,
    /// The trusted authorities.
    pub authorities: Authorities,
    /// The client certificate.
    pub identity: IdentitySource,
    /// The `Authorization` header.
    pub credentials: Credentials,
    /// Impersonation headers.
    pub headers: HeaderMap,
    /// The proxy, if any.
    pub proxy: Option<Proxy>,
    /// Whether responses may be compressed.
    pub compress: bool,
    /// Prefixes of messages about authorities and client certificate.
    pub origins: ConfigOrigins,
}

impl ApiAccess {
    /// Finds the server. `kubeconfig`: a file; `master` replaces its server, or is used alone. Neither: the service
    /// account.
    ///
    /// # Errors
    /// What is missing or invalid, with file, context and field.
    pub fn find(kubeconfig: Option<&Path>, master: &str) -> Result<Self, String> {
        let server = (!master.is_empty()).then_some(master);
        match (kubeconfig, server) {
            (Some(path), server) => Self::of_kubeconfig(Kubeconfig::select(path, server)?, server.is_some()),
            (None, Some(server)) => {
                let server = ServerUrl::parse(server, false).map_err(|problem| format!("--master: {problem}"))?;
                Self::anonymous(server)
            }
            (None, None) => {
                info!("Neither --kubeconfig nor --master was specified: using the Pod's service account");
                Self::in_cluster(|name| std::env::var(name).ok(), Path::new(SERVICE_ACCOUNT)).map_err(|problem| {
                    format!(
                        "no API server configured: {problem}; set --kubeconfig or --master, or --objects to run without one"
                    )
                })
            }
        }
    }

    fn anonymous(server: ServerUrl) -> Result<Self, String> {
        Ok(Self {
            server_name: server.authority.host().trim_matches(['[', ']']).to_owned(),
            proxy: Proxy::from_environment(&server, |name| std::env::var(name).ok())?,
            server,
            authorities: Authorities::System,
            identity: IdentitySource::None,
            credentials: Credentials::None,
            headers: HeaderMap::new(),
            compress: true,
            origins: ConfigOrigins::default(),
        })
    }

    /// As client-go's `InClusterConfig`. `variable` looks up an environment variable.
    fn in_cluster(variable: impl Fn(&str) -> Option<String>, folder: &Path) -> Result<Self, String> {
        let variable = |name: &str| non_empty(variable(name)).ok_or_else(|| format!("{name} is not set"));
        let host = variable("KUBERNETES_SERVICE_HOST")?;
        let port = variable("KUBERNETES_SERVICE_PORT")?;
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let server = ServerUrl::parse(&format!("https://{host}:{port}"), true)?;
        let token = TokenFile::new(folder.join("token"), None)?;
        let bundle = folder.join("ca.crt");
        let authorities = match std::fs::metadata(&bundle) {
            Ok(_) => Authorities::Configured(Pem::File(bundle)),
            Err(problem) => {
                error!("Failed to read {}, trusting the system's authorities: {problem}", bundle.display());
                Authorities::System
            }
        };
        Ok(Self { authorities, credentials: Credentials::File(token), ..Self::anonymous(server)? })
    }

    fn of_kubeconfig(selected: SelectedContext, is_master: bool) -> Result<Self, String> {
        let SelectedContext { origin, cluster_name, cluster, user_name, user } = selected;
        let in_cluster = |field: &str, problem: &str| format!("{origin}: cluster {cluster_name:?}: {field}: {problem}");
        let of_user = |problem: String| format!("{origin}: user {user_name:?}: {problem}");

        let authorities = authorities(&cluster).map_err(|(field, problem)| in_cluster(field, &problem))?;
        let pair = pair(&user).map_err(of_user)?;
        let text = cluster.server.clone().unwrap_or_default();
        let has_tls = pair.is_some() || !matches!(authorities, Authorities::System);
        let server = ServerUrl::parse(&text, has_tls).map_err(|problem| match is_master {
            true => format!("--master: {problem}"),
            false => in_cluster("server", &problem),
        })?;
        let mut access = Self::anonymous(server)?;
        if let Some(url) = non_empty(cluster.proxy_url.clone()) {
            access.proxy = Some(Proxy::parse(&url).map_err(|problem| in_cluster("proxy-url", &problem))?);
        }
        if let Some(name) = non_empty(cluster.tls_server_name.clone()) {
            access.server_name = name;
        }
        if cluster.insecure_skip_tls_verify == Some(true)
            && (cluster.certificate_authority.is_some() || cluster.certificate_authority_data.is_some())
        {
            // client-go rejects this.
            let problem = "the certificate authority in the same cluster is not used";
            warn!("{}", in_cluster("insecure-skip-tls-verify", problem));
        }
        (access.identity, access.credentials) = identify(&user, pair, &cluster).map_err(of_user)?;
        access.headers = impersonation(&user).map_err(of_user)?;
        access.authorities = authorities;
        access.origins = ConfigOrigins {
            authorities: in_cluster("certificate-authority", ""),
            identity: of_user("client-certificate and client-key: ".to_owned()),
        };
        access.compress = cluster.disable_compression != Some(true);
        Ok(access)
    }
}

fn authorities(cluster: &Cluster) -> Result<Authorities, (&'static str, String)> {
    const DATA: &str = "certificate-authority-data";
    if cluster.insecure_skip_tls_verify == Some(true) {
        return Ok(Authorities::Unchecked);
    }
    let pem = match non_empty(cluster.certificate_authority_data.clone()) {
        Some(data) => Some(decoded(&data, DATA).map_err(|problem| (DATA, problem))?),
        None => cluster.certificate_authority.clone().map(Pem::File),
    };
    Ok(pem.map_or(Authorities::System, Authorities::Configured))
}

/// Certificate and key. A key alone is ignored, as in client-go.
fn pair(user: &User) -> Result<Option<(Pem, Pem)>, String> {
    let source = |data: &Option<String>, file: &Option<std::path::PathBuf>, field| match non_empty(data.clone()) {
        Some(data) => decoded(&data, field).map(Some).map_err(|problem| format!("{field}: {problem}")),
        None => Ok(file.clone().map(Pem::File)),
    };
    let certificate = source(&user.client_certificate_data, &user.client_certificate, "client-certificate-data")?;
    let key = source(&user.client_key_data, &user.client_key, "client-key-data")?;
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (Some(_), None) => Err("client certificate without client-key or client-key-data".to_owned()),
        (None, _) => Ok(None),
    }
}

/// Decodes Base64 with line breaks anywhere.
fn decoded(data: &str, field: &str) -> Result<Pem, String> {
    let data: String = data.split_whitespace().collect();
    let text = openssl::base64::decode_block(&data).map_err(|_| "invalid Base64".to_owned())?;
    Ok(Pem::Inline(text, field.to_owned()))
}

/// Selects the credentials. A plugin is used only without any other, as in client-go.
fn identify(user: &User, pair: Option<(Pem, Pem)>, cluster: &Cluster) -> Result<(IdentitySource, Credentials), String> {
    if let Some(provider) = &user.auth_provider {
        let name = provider.name.as_deref().unwrap_or_default();
        return Err(format!("auth-provider {name:?}: Kubernetes removed it in 1.26; use exec or a token"));
    }
    let plugin = match user.exec.clone() {
        Some(exec) => Some(ExecPlugin::new(exec, || cluster_info(cluster))?),
        None => None,
    };
    let token = non_empty(user.token.clone()).map(|token| bearer(&token)).transpose()?;
    let (name, password) = (non_empty(user.username.clone()), non_empty(user.password.clone()));
    let credentials = match (&user.token_file, token) {
        (None, None) if name.is_none() && password.is_none() => None,
        (None, None) => Some(Credentials::basic(&name.unwrap_or_default(), &password.unwrap_or_default())?),
        _ if name.is_some() || password.is_some() => {
            return Err("token and password are both set, only one is allowed".to_owned());
        }
        (Some(file), token) => Some(Credentials::File(TokenFile::new(file.clone(), token)?)),
        (None, Some(header)) => Some(Credentials::Fixed(header)),
    };
    Ok(match (pair, credentials, plugin) {
        (None, None, Some(plugin)) => {
            let plugin = Arc::new(plugin);
            (IdentitySource::Exec(Arc::clone(&plugin)), Credentials::Exec(plugin))
        }
        (pair, credentials, _) => (
            pair.map_or(IdentitySource::None, |(certificate, key)| IdentitySource::Pair(certificate, key)),
            credentials.unwrap_or(Credentials::None),
        ),
    })
}

fn cluster_info(cluster: &Cluster) -> Result<serde_json::Value, String> {
    let text = match authorities(cluster) {
        Ok(Authorities::Configured(pem)) => Some(pem.read()?),
        _ => None,
    };
    Ok(exec_protocol::cluster(cluster, text.as_deref()))
}

/// The headers of `as`, `as-uid`, `as-groups` and `as-user-extra`.
fn impersonation(user: &User) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let groups = user.as_groups.iter().flatten();
    let extra = user.as_user_extra.iter().flatten();
    let (name, uid) = (non_empty(user.impersonate.clone()), non_empty(user.as_uid.clone()));
    if name.is_none() && (uid.is_some() || groups.clone().next().is_some() || extra.clone().next().is_some()) {
        return Err("as-uid, as-groups or as-user-extra are set without as".to_owned());
    }
    let mut add = |header: &str, value: &str| -> Result<(), String> {
        let name: HeaderName = header.parse().map_err(|error| format!("{header}: {error}"))?;
        let value = HeaderValue::from_str(value).map_err(|error| format!("{header}: {error}"))?;
        headers.append(name, value);
        Ok(())
    };
    name.iter().try_for_each(|name| add("impersonate-user", name))?;
    uid.iter().try_for_each(|uid| add("impersonate-uid", uid))?;
    groups.into_iter().try_for_each(|group| add("impersonate-group", group))?;
    for (key, values) in extra {
        let header = format!("impersonate-extra-{}", escaped(key));
        values.iter().try_for_each(|value| add(&header, value))?;
    }
    Ok(headers)
}

/// Percent-encodes characters that a header name cannot contain.
fn escaped(key: &str) -> String {
    key.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'!' | b'~' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[cfg(test)]
#[path = "access_tests.rs"]
mod tests;
