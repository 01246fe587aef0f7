//! The protocol of exec plugins: `ExecCredential` of `client.authentication.k8s.io`.

use http::HeaderValue;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::kubeconfig::Cluster;
use super::pem::{Identity, Pem};
use super::token;

/// The supported versions.
pub const API_VERSIONS: [&str; 2] = ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"];

/// The cluster extension for plugins.
const EXTENSION: &str = "client.authentication.k8s.io/exec";

/// Credentials issued by a plugin.
pub struct PluginCredentials {
    /// `Bearer TOKEN`.
    pub token: Option<HeaderValue>,
    /// A client certificate and its key, as PEM.
    pub identity: Option<(Pem, Pem)>,
    /// When they expire; `None`: they are used until the API server responds 401.
    pub expires: Option<Timestamp>,
}

/// The value of `KUBERNETES_EXEC_INFO`. `cluster`: see [`cluster`].
pub fn input(api_version: &str, cluster: Option<&Value>) -> String {
    let mut spec = json!({ "interactive": false });
    if let Some(cluster) = cluster {
        spec["cluster"] = cluster.clone();
    }
    json!({ "apiVersion": api_version, "kind": "ExecCredential", "spec": spec }).to_string()
}

/// The cluster information for plugins. `authorities`: its CA bundle.
pub fn cluster(cluster: &Cluster, authorities: Option<&[u8]>) -> Value {
    let mut info = json!({ "server": cluster.server });
    let config = cluster.extensions.iter().flatten().find(|extension| extension.name == EXTENSION);
    for (name, value) in [
        ("tls-server-name", cluster.tls_server_name.clone().map(Value::from)),
        ("insecure-skip-tls-verify", cluster.insecure_skip_tls_verify.filter(|skip| *skip).map(Value::from)),
        ("certificate-authority-data", authorities.map(|text| Value::from(openssl::base64::encode_block(text)))),
        ("proxy-url", cluster.proxy_url.clone().map(Value::from)),
        ("disable-compression", cluster.disable_compression.filter(|disable| *disable).map(Value::from)),
        ("config", config.map(|extension| extension.extension.clone())),
    ] {
        if let Some(value) = value {
            info[name] = value;
        }
    }
    info
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ExecCredential {
    api_version: Option<String>,
    kind: Option<String>,
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    client_certificate_data: Option<String>,
    #[serde(default)]
    client_key_data: Option<String>,
    #[serde(default)]
    expiration_timestamp: Option<String>,
}

/// Parses the output of a plugin. `plugin`: its name, for messages, which never contain the output.
///
/// # Errors
/// Anything but an `ExecCredential` of this version with a token, a valid certificate and key, or all of them.
pub fn output(text: &[u8], api_version: &str, plugin: &str) -> Result<PluginCredentials, String> {
    let credential: ExecCredential = serde_json::from_slice(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("it printed no ExecCredential ({} bytes; not the expected JSON at {line}:{column})", text.len())
    })?;
    if credential.kind.as_deref() != Some("ExecCredential") {
        return Err("it printed JSON whose kind is not ExecCredential".to_owned());
    }
    let version = credential.api_version.unwrap_or_default();
    if version != api_version {
        return Err(format!("it is configured with apiVersion {api_version} and printed {version:?}"));
    }
    let status = credential.status.ok_or("it printed an ExecCredential without status")?;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let token = given(status.token).map(|token| token::bearer(&token)).transpose()?;
    let identity = match (given(status.client_certificate_data), given(status.client_key_data)) {
        (Some(certificate), Some(key)) => Some(identity((certificate, key), plugin)?),
        (None, None) => None,
        _ => return Err("it printed only one of clientCertificateData and clientKeyData".to_owned()),
    };
    if token.is_none() && identity.is_none() {
        return Err("it printed neither a token nor a certificate and key".to_owned());
    }
    let expires = given(status.expiration_timestamp).map(|time| time.parse()).transpose();
    let expires = expires.map_err(|error| format!("its expirationTimestamp is invalid: {error}"))?;
    Ok(PluginCredentials { token, identity, expires })
}

fn identity((certificate, key): (String, String), plugin: &str) -> Result<(Pem, Pem), String> {
    let certificate = Pem::Inline(certificate.into_bytes(), format!("clientCertificateData of exec plugin {plugin}"));
    let key = Pem::Inline(key.into_bytes(), format!("clientKeyData of exec plugin {plugin}"));
    Identity::parse((&certificate, &key), &certificate.read()?, &key.read()?)?;
    Ok((certificate, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = API_VERSIONS[0];

    fn printed(status: &Value) -> Result<PluginCredentials, String> {
        let text = json!({"apiVersion": V1, "kind": "ExecCredential", "status": status}).to_string();
        output(text.as_bytes(), V1, "get-token")
    }

    #[test]
    fn a_token_with_its_end_is_understood() {
        let issued = printed(&json!({"token": "t", "expirationTimestamp": "2030-01-02T03:04:05Z"})).expect("a token");
        assert_eq!(issued.token.as_ref().and_then(|token| token.to_str().ok()), Some("Bearer t"));
        assert!(issued.token.is_some_and(|token| token.is_sensitive()));
        assert_eq!(issued.expires.map(|time| time.to_string()).as_deref(), Some("2030-01-02T03:04:05Z"));
    }

    #[test]
    fn anything_else_is_refused_without_showing_it() {
        for text in ["", "secret", "{", "null", "{\"kind\": \"secret\"}", "{\"kind\": \"ExecCredential\"}"] {
            let error = output(text.as_bytes(), V1, "p").err().expect(text);
            assert!(!error.contains("secret"), "{error}");
        }
        for status in [
            json!({}),
            json!({"token": ""}),
            json!({"token": "a\nb"}),
            json!({"token": "t", "expirationTimestamp": "soon"}),
            json!({"clientCertificateData": "c"}),
            json!({"clientCertificateData": "c", "clientKeyData": "k"}),
        ] {
            assert!(printed(&status).is_err(), "{status}");
        }
        let other = json!({"apiVersion": API_VERSIONS[1], "kind": "ExecCredential", "status": {"token": "t"}});
        assert!(output(other.to_string().as_bytes(), V1, "p").is_err_and(|error| error.contains("v1beta1")));
    }

    #[test]
    fn plugin_gets_the_same_cluster_information_as_from_client_go() {
        let mut of: Cluster = serde_json::from_value(json!({
            "server": "https://h", "tls-server-name": "n", "extensions": [{"name": EXTENSION, "extension": {"a": 1}}]
        }))
        .expect("a cluster");
        of.insecure_skip_tls_verify = Some(false);
        let info: Value = serde_json::from_str(&input(V1, Some(&cluster(&of, Some(b"ca"))))).expect("JSON");
        let spec = json!({"interactive": false, "cluster": {
            "server": "https://h", "tls-server-name": "n", "certificate-authority-data": "Y2E=", "config": {"a": 1}
        }});
        assert_eq!(info, json!({"apiVersion": V1, "kind": "ExecCredential", "spec": spec}));
    }
}
