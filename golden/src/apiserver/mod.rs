//! A Kubernetes API server for tests, with fault injection.
//!
//! It serves lists, pages, watches and streamed lists over HTTP/1.1, in JSON and protobuf; [`Fault`] lists the faults.
//! Its answers are compared with recordings of kube-apiserver 1.36.2 (`golden/apiserver`).
//!
//! Nothing is validated or defaulted: clients get what a test applied, so that a test can serve what no real server
//! would. All methods are synchronous; the server runs on its own thread.

mod accept;
mod answer;
mod binding;
mod body;
mod cluster;
mod controls;
mod delivery;
mod encoding;
mod event;
mod exchange;
mod expiry;
mod fault;
mod http;
mod inject;
mod list;
mod object;
mod options;
mod protobuf;
mod request;
mod resource;
mod selector;
mod serve;
mod shared;
mod status;
mod store;
mod synthetic;
mod token;
mod watch;
mod write;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

pub use self::delivery::Pace;
pub use self::encoding::MediaTypes;
pub use self::event::End;
pub use self::fault::{Fault, Injection, Requests};
pub use self::request::Request;

use self::binding::Binding;
use self::serve::Control;
use self::shared::Shared;

/// The timeout of waits for a client's requests.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

/// An API server, stopped when dropped.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    control: Option<UnboundedSender<Control>>,
    thread: Option<JoinHandle<()>>,
}

impl ApiServer {
    /// Starts a server on a free port of 127.0.0.1.
    ///
    /// # Panics
    /// If there is no free port.
    #[must_use]
    pub fn start() -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").expect("127.0.0.1 has a free port"))
    }

    /// Starts a server on a listener, which may belong to another network namespace.
    ///
    /// # Panics
    /// If the thread cannot be started.
    #[must_use]
    pub fn start_on(listener: TcpListener) -> Self {
        let binding = Binding::of(&listener);
        let address = binding.address();
        let shared = Arc::new(Shared::new());
        let (control, commands) = unbounded_channel();
        let for_thread = Arc::clone(&shared);
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime starts");
            runtime.block_on(serve::run(listener, binding, for_thread, commands));
        };
        let thread = std::thread::Builder::new().name("apiserver".into()).spawn(serve).expect("a thread starts");
        Self { shared, address, control: Some(control), thread: Some(thread) }
    }

    /// The address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its base URL: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig into `dir` and returns its path; it contains the required token, if any.
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    pub fn kubeconfig(&self, dir: &Path) -> PathBuf {
        let user = match &self.shared.state().token {
            Some(token) => format!("{{token: {token:?}}}"),
            None => "{}".to_owned(),
        };
        self.kubeconfig_with(dir, &user)
    }

    /// Writes a kubeconfig with a `user` in YAML into `dir` and returns its path.
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    pub fn kubeconfig_with(&self, dir: &Path, user: &str) -> PathBuf {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
             clusters:\n- name: test\n  cluster: {{server: {:?}}}\n\
             users:\n- name: kube-proxy\n  user: {user}\n\
             contexts:\n- name: test\n  context: {{cluster: test, user: kube-proxy}}\n",
            self.url()
        );
        let path = dir.join("kubeconfig");
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        path
    }

    /// All requests received, in order, answered or not.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.shared.state().requests.clone()
    }

    /// Clears the recorded requests.
    pub fn clear_requests(&self) {
        self.shared.state().requests.clear();
    }

    /// The number of open watches of a kind.
    #[must_use]
    pub fn watching(&self, kind: &str) -> usize {
        self.shared.state().store.watching(kind)
    }

    /// Blocks until this many watches of a kind are open.
    ///
    /// # Panics
    /// At the timeout.
    #[track_caller]
    pub fn wait_for_watches(&self, kind: &str, count: usize) {
        let done = self.shared.wait(WAIT_TIMEOUT, |state| state.store.watching(kind) == count);
        assert!(done, "{} watches of {kind} are open, not {count}", self.watching(kind));
    }

    /// Blocks until the received requests fulfil `done`; `what` names the condition.
    ///
    /// # Panics
    /// At the timeout.
    #[track_caller]
    pub fn wait_for_requests(&self, what: &str, mut done: impl FnMut(&[Request]) -> bool) {
        let done = self.shared.wait(WAIT_TIMEOUT, |state| done(&state.requests));
        assert!(done, "still waiting for {what}; requests so far: {:#?}", self.requests());
    }

    fn control(&self, command: impl FnOnce(std::sync::mpsc::Sender<()>) -> Control) {
        let (done, is_done) = std::sync::mpsc::channel();
        let control = self.control.as_ref().expect("the server is not dropped");
        control.send(command(done)).expect("the server's thread lives");
        is_done.recv().expect("the server's thread lives");
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.control = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
