//! TLS material from files and plugins, reloaded when it changes.
//!
//! Client certificate and key are read for every new connection and every [`RELOAD_INTERVAL`]. A new client certificate
//! closes
//! the connections that use the old one, as client-go's `certRotatingDialer` does. Authorities are read again for a new
//! connection when the last read is older than [`MAX_AUTHORITIES_AGE`]; existing connections stay open. Files that are
//! unreadable or inconsistent leave the last valid material in use.
//!
//! A refused server certificate does not reload the authorities at once: all reflectors must see the refusal and list
//! again, as
//! client-go's do. A server with another authority may be a cluster restored from a backup, with unrelated resource
//! versions.

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use openssl::ssl::SslContext;
use openssl::x509::X509;
use tokio::sync::watch;
use tracing::{info, warn};

use super::error::ConnectError;
use super::exec::ExecPlugin;
use super::pem::{self, Identity, Pem};
use super::tls::{self, Trust};

/// How often files are read. client-go: every 5 minutes.
const RELOAD_INTERVAL: Duration = Duration::from_secs(20);

/// The greatest age of authorities for a new connection. client-go: 5 minutes.
const MAX_AUTHORITIES_AGE: Duration = Duration::from_secs(30);

/// The source of authorities.
pub enum Authorities {
    /// The system's bundle.
    System,
    /// The kubeconfig or the service account.
    Configured(Pem),
    /// None: every certificate is accepted.
    Unchecked,
}

/// The source of the client certificate.
pub enum IdentitySource {
    /// No client certificate.
    None,
    /// A certificate and its key.
    Pair(Pem, Pem),
    /// A plugin, which may also issue tokens alone.
    Exec(Arc<ExecPlugin>),
}

/// Prefixes of messages with the file, context and field of the material, or empty.
#[derive(Clone, Debug, Default)]
pub struct ConfigOrigins {
    /// Of the authorities.
    pub authorities: String,
    /// Of client certificate and key.
    pub identity: String,
}

/// The material of a new connection.
#[derive(Clone)]
pub struct TlsHandshake {
    /// Authorities, client certificate, protocols.
    pub context: SslContext,
    /// The file of the authorities; `None`: the server's certificate is not verified.
    pub trust: Option<Arc<str>>,
    /// The file of the client certificate, if any.
    pub identity: Option<Arc<str>>,
    /// Changes when connections with this material must be closed.
    pub rotated: watch::Receiver<u64>,
}

/// The TLS material of one server.
pub struct TlsMaterial {
    authorities: Authorities,
    identity: IdentitySource,
    http2: bool,
    loaded: Mutex<LoadedMaterial>,
    rotations: watch::Sender<u64>,
}

#[derive(Default)]
struct LoadedMaterial {
    authorities: Vec<X509>,
    /// Where the authorities come from; `None` until they were read once.
    trust: Option<Arc<str>>,
    authorities_text: Vec<u8>,
    /// When the authorities were read last.
    authorities_read: Option<Instant>,
    identity: Option<Identity>,
    identity_name: Option<Arc<str>>,
    identity_text: Option<(Vec<u8>, Vec<u8>)>,
    context: Option<SslContext>,
    /// The last logged problem of authorities and identity.
    problems: [Option<String>; 2],
}

impl TlsMaterial {
    /// Reads all files; a plugin is not run yet. `http2`: offer HTTP/2.
    ///
    /// # Errors
    /// A file that cannot be read or used. The message begins with its origin and names it.
    pub fn new(
        authorities: Authorities,
        identity: IdentitySource,
        http2: bool,
        origins: ConfigOrigins,
    ) -> Result<Arc<Self>, String> {
        let at = |origin: &str, problem: String| format!("{origin}{problem}");
        let material =
            Self { authorities, identity, http2, loaded: Mutex::default(), rotations: watch::Sender::new(0) };
        {
            let mut loaded = material.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            material.load_authorities(&mut loaded).map_err(|problem| at(&origins.authorities, problem))?;
            if let IdentitySource::Pair(certificate, key) = &material.identity {
                let result = material.load_identity(&mut loaded, Some((certificate, key)));
                result.map_err(|problem| at(&origins.identity, problem))?;
            }
            material.context(&mut loaded)?;
        }
        Ok(Arc::new(material))
    }

    /// Reads the client certificate periodically while the material is in use.
    pub fn keep_fresh(self: &Arc<Self>) {
        if matches!(self.identity, IdentitySource::None | IdentitySource::Pair(Pem::Inline(..), Pem::Inline(..))) {
            return;
        }
        let material: Weak<Self> = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut last = None;
            loop {
                tokio::time::sleep(RELOAD_INTERVAL).await;
                let Some(material) = material.upgrade() else { return };
                let problem = material.renew_identity().await.err().map(|error| error.to_string());
                if let Some(text) = problem.as_ref().filter(|_| problem != last) {
                    warn!("Failed to renew the client certificate: {text}");
                }
                last = problem;
            }
        });
    }

    /// The material of a new connection, from the current files.
    ///
    /// # Errors
    /// The plugin issues no valid credentials.
    pub async fn handshake(&self) -> Result<TlsHandshake, ConnectError> {
        {
            let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
            let result = self.load_authorities(&mut loaded);
            loaded.log(0, result);
        }
        self.renew_identity().await?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let context = self.context(&mut loaded).map_err(ConnectError::Tls)?;
        Ok(TlsHandshake {
            context,
            trust: loaded.trust.clone(),
            identity: loaded.identity_name.clone(),
            rotated: self.rotations.subscribe(),
        })
    }

    async fn renew_identity(&self) -> Result<(), ConnectError> {
        let issued = match &self.identity {
            IdentitySource::Exec(plugin) => Some(plugin.credentials().await.map_err(ConnectError::Credentials)?),
            IdentitySource::None | IdentitySource::Pair(..) => None,
        };
        let pair = match (&self.identity, &issued) {
            (IdentitySource::Pair(certificate, key), _) => Some((certificate, key)),
            (_, Some(issued)) => issued.identity.as_ref().map(|(certificate, key)| (certificate, key)),
            _ => None,
        };
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.load_identity(&mut loaded, pair);
        loaded.log(1, result);
        Ok(())
    }

    fn load_authorities(&self, loaded: &mut LoadedMaterial) -> Result<(), String> {
        if loaded.authorities_read.is_some_and(|at| at.elapsed() < MAX_AUTHORITIES_AGE) {
            return Ok(());
        }
        loaded.authorities_read = Some(Instant::now());
        let (text, name) = match &self.authorities {
            Authorities::Unchecked => return Ok(()),
            Authorities::System if loaded.trust.is_some() => return Ok(()),
            Authorities::System => {
                let (authorities, path) = tls::system_authorities()?;
                (loaded.authorities, loaded.trust) = (authorities, Some(path.into()));
                return Ok(());
            }
            Authorities::Configured(pem) => (pem.read()?, pem.to_string()),
        };
        if loaded.trust.is_some() && text == loaded.authorities_text {
            return Ok(());
        }
        let (authorities, invalid) = pem::authorities(&text).map_err(|problem| format!("{name}: {problem}"))?;
        if invalid > 0 {
            warn!("Skipped {invalid} certificates of {name} that cannot be parsed");
        }
        if loaded.trust.is_some() {
            info!("Reloaded {name}: new connections trust its {} authorities", authorities.len());
        }
        (loaded.authorities, loaded.authorities_text, loaded.trust) = (authorities, text, Some(name.into()));
        loaded.context = None;
        Ok(())
    }

    fn load_identity(&self, loaded: &mut LoadedMaterial, pair: Option<(&Pem, &Pem)>) -> Result<(), String> {
        let text = pair.map(|(certificate, key)| Ok::<_, String>((certificate.read()?, key.read()?))).transpose()?;
        if text == loaded.identity_text {
            return Ok(());
        }
        let parsed = match (pair, &text) {
            (Some(pair), Some((certificate, key))) => Some(Identity::parse(pair, certificate, key)?),
            _ => None,
        };
        // A pair that OpenSSL rejects must not replace a valid one.
        tls::context(&self.trust(&loaded.authorities), parsed.as_ref(), self.http2).map_err(|error| {
            format!("{}: {error}", pair.map_or(String::new(), |(certificate, _)| certificate.to_string()))
        })?;
        let is_rotation = loaded.identity_text.is_some();
        loaded.context = None;
        loaded.identity_name = pair.map(|(certificate, _)| certificate.to_string().into());
        (loaded.identity, loaded.identity_text) = (parsed, text);
        if is_rotation {
            let name = loaded.identity_name.as_deref().unwrap_or("the exec plugin");
            info!("Client certificate of {name} changed, closing connections that use the old one");
            self.rotations.send_modify(|rotation| *rotation += 1);
        }
        Ok(())
    }

    fn trust<'a>(&self, authorities: &'a [X509]) -> Trust<'a> {
        match self.authorities {
            Authorities::Unchecked => Trust::Anything,
            Authorities::System | Authorities::Configured(_) => Trust::Authorities(authorities),
        }
    }

    fn context(&self, loaded: &mut LoadedMaterial) -> Result<SslContext, String> {
        if let Some(context) = &loaded.context {
            return Ok(context.clone());
        }
        let context = tls::context(&self.trust(&loaded.authorities), loaded.identity.as_ref(), self.http2);
        let context = context.map_err(|error| format!("cannot set up TLS: {error}"))?;
        loaded.context = Some(context.clone());
        Ok(context)
    }
}

impl LoadedMaterial {
    /// Logs a problem once, until it changes or is solved.
    fn log(&mut self, which: usize, result: Result<(), String>) {
        let problem = result.err();
        if self.problems[which] != problem
            && let Some(problem) = &problem
        {
            warn!("Failed to reload TLS material, using the last valid one: {problem}");
        }
        self.problems[which] = problem;
    }
}

#[cfg(test)]
#[path = "material_tests.rs"]
mod tests;
