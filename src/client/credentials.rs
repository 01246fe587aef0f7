//! The `Authorization` header of requests: a token, a token file, a password, or what an exec plugin issues.

use std::sync::Arc;

use http::HeaderValue;

use super::exec::ExecPlugin;
use super::exec_protocol::PluginCredentials;
use super::token::TokenFile;

/// How requests say who we are.
#[derive(Clone)]
pub enum Credentials {
    /// Not at all, or by the client certificate alone.
    None,
    /// Always the same header: a token or a password.
    Fixed(HeaderValue),
    /// A file with a bearer token.
    File(TokenFile),
    /// A plugin; a client certificate that it issues is the business of [`super::material`].
    Exec(Arc<ExecPlugin>),
}

/// The header of one request and, if a plugin issued it, what to complain about.
pub struct Authorization {
    /// The value of `Authorization`, if there is one.
    pub header: Option<HeaderValue>,
    issued: Option<Arc<PluginCredentials>>,
}

impl Credentials {
    /// The header for a request that is sent now.
    ///
    /// # Errors
    /// The plugin gives no valid credentials.
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

    /// The API server answered 401. Like client-go, the request itself is not repeated.
    pub async fn rejected(&self, authorization: &Authorization) {
        if let (Self::Exec(plugin), Some(issued)) = (self, &authorization.issued) {
            plugin.rejected(issued).await;
        }
    }

    /// Basic authentication.
    ///
    /// # Errors
    /// Never in fact: Base64 fits into a header.
    pub fn basic(name: &str, password: &str) -> Result<Self, String> {
        let encoded = openssl::base64::encode_block(format!("{name}:{password}").as_bytes());
        let mut header = HeaderValue::from_str(&format!("Basic {encoded}")).map_err(|error| error.to_string())?;
        header.set_sensitive(true);
        Ok(Self::Fixed(header))
    }
}
