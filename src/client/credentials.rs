//! The `Authorization` header of requests: a token, a token file, a password, or the credentials of an exec plugin.

use std::sync::Arc;

use http::HeaderValue;

use super::exec::ExecPlugin;
use super::exec_protocol::PluginCredentials;
use super::token::TokenFile;

/// How requests authenticate.
#[derive(Clone)]
pub enum Credentials {
    /// No header: anonymous, or a client certificate alone.
    None,
    /// Always the same header: a token or a password.
    Fixed(HeaderValue),
    /// A file with a bearer token.
    File(TokenFile),
    /// A plugin; [`super::material`] uses a client certificate that it issues.
    Exec(Arc<ExecPlugin>),
}

/// The header of one request, and the plugin credentials that it contains.
pub struct Authorization {
    /// The value of `Authorization`, if any.
    pub header: Option<HeaderValue>,
    issued: Option<Arc<PluginCredentials>>,
}

impl Credentials {
    /// The header for a request that is sent now.
    ///
    /// # Errors
    /// The plugin issues no valid credentials.
    pub async fn authorization(&self) -> Result<Authorization, String> {
        Ok(match self {
            Self::None => Authorization { header: None, issued: None },
            Self::Fixed(header) => Authorization { header: Some(header.clone()), issued: None },
            Self::File(file) => Authorization { header: Some(file.header()), issued: None },
            Self::Exec(plugin) => {
                let issued = plugin.credentials().await?;
                Authorization { header: issued.token.clone(), issued: Some(issued) }
            }
        })
    }

    /// Handles a response of 401. As in client-go, the request itself is not repeated.
    pub async fn rejected(&self, authorization: &Authorization) {
        if let (Self::Exec(plugin), Some(issued)) = (self, &authorization.issued) {
            plugin.rejected(issued).await;
        }
    }

    /// Basic authentication.
    ///
    /// # Errors
    /// None in practice: Base64 is a valid header value.
    pub fn basic(name: &str, password: &str) -> Result<Self, String> {
        let encoded = openssl::base64::encode_block(format!("{name}:{password}").as_bytes());
        let mut header = HeaderValue::from_str(&format!("Basic {encoded}")).map_err(|error| error.to_string())?;
        header.set_sensitive(true);
        Ok(Self::Fixed(header))
    }
}
