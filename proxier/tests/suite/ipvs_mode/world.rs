//! One IPv4 proxy on a fake kernel, step by step.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use proxier::backend::{Backend, SyncError, SyncStats};
use proxier::model::config::ServiceMetrics;
use proxier::model::{Config, IpvsConfig, Scope};
use proxier::testing::objects;
use proxier::track::{Change, Kind, Tracker, Translation, Translator, key_of};
use serde_json::{Value, json};

use super::fake::Fake;
use crate::common::run::Kernel;

/// The proxy, its objects and its kernel.
pub struct World {
    pub fake: Fake,
    pub backend: Box<dyn Backend>,
    pub now: Instant,
    config: Config,
    ipvs: IpvsConfig,
    objects: Vec<Value>,
    translator: Translator,
    tracker: Tracker,
}

impl World {
    pub fn new() -> Self {
        Self::with(Fake::default(), objects::config(), IpvsConfig::default())
    }

    pub fn with(fake: Fake, config: Config, ipvs: IpvsConfig) -> Self {
        let backend = fake.with(config.clone(), ipvs.clone(), fake.tool());
        let translator = Translator::new(objects::NODE, false);
        let (now, tracker) = (Instant::now(), Tracker::default());
        let mut world = Self { fake, backend, now, config, ipvs, objects: Vec::new(), translator, tracker };
        world.list();
        world
    }

    /// A new process on the same kernel.
    pub fn restart(&mut self) {
        self.backend = self.fake.with(self.config.clone(), self.ipvs.clone(), self.fake.tool());
        self.list();
    }

    /// A new process with other service metrics, on the same kernel.
    pub fn restart_with_metrics(&mut self, service_metrics: ServiceMetrics) {
        self.config.service_metrics = service_metrics;
        self.restart();
    }

    fn list(&mut self) {
        self.tracker = Tracker::default();
        self.tracker.request_full_sync();
        for kind in Kind::ALL {
            self.tell(Translation::everywhere(&Change::Listing(kind)));
        }
        for object in self.objects.clone() {
            self.see(object);
        }
        for kind in Kind::ALL {
            self.tell(Translation::everywhere(&Change::Listed(kind)));
        }
    }

    /// An object is made or changed.
    pub fn apply(&mut self, object: Value) {
        let same = |other: &Value| identity(other) == identity(&object);
        self.objects.retain(|other| !same(other));
        self.objects.push(object.clone());
        self.see(object);
    }

    /// An object goes.
    pub fn delete(&mut self, object: &Value) {
        self.objects.retain(|other| identity(other) != identity(object));
        self.tell(Translator::deleted(&key_of(kind(object), object)));
    }

    fn see(&mut self, object: Value) {
        let translated =
            self.translator.applied(objects::decoded(kind(&object), object)).expect("an object that makes sense");
        self.tell(translated);
    }

    fn tell(&mut self, translated: Translation) {
        for (_, change) in translated.changes.into_iter().filter(|(family, _)| *family == IpFamily::V4) {
            self.tracker.apply(change);
        }
    }

    /// What a `Proxier` asks after an address came or went.
    pub fn host_changed(&mut self) -> bool {
        let node_ip = "192.168.50.2".parse().expect("an address");
        self.backend.host_changed(&self.tracker.snapshot(node_ip))
    }

    /// What a `Proxier` does when a sync is due.
    pub fn try_sync(&mut self) -> Result<SyncStats, SyncError> {
        let scope = self.tracker.take_scope();
        let node_ip = "192.168.50.2".parse().expect("an address");
        let result = self.backend.sync(&self.tracker.snapshot(node_ip), &scope, self.now);
        match &result {
            Ok(stats) => self.tracker.request_sync_of(stats.rejected.iter().map(|rejected| rejected.port.clone())),
            Err(_) => self.tracker.request_full_sync(),
        }
        result
    }

    #[track_caller]
    pub fn sync(&mut self) -> SyncStats {
        self.try_sync().expect("the kernel takes it")
    }

    /// Everything has to be looked at.
    pub fn request_full_sync(&mut self) {
        self.tracker.request_full_sync();
        assert_eq!(self.tracker.take_scope(), Scope::Full);
        self.tracker.request_full_sync();
    }

    /// Lets time pass, and has the mode do what is due then.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.backend.next_event().filter(|at| *at <= end) {
            self.now = at;
            self.backend.tick(at).expect("the kernel takes it");
        }
        self.now = end;
    }
}

fn identity(object: &Value) -> [&Value; 3] {
    [&object["kind"], &object["metadata"]["namespace"], &object["metadata"]["name"]]
}

fn kind(object: &Value) -> Kind {
    Kind::ALL.into_iter().find(|kind| object["kind"] == kind.name()).expect("a known kind")
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// A Service `default/NAME` at this cluster IP.
pub fn service(name: &str, cluster_ip: &str) -> Value {
    objects::service("default", name, ip(cluster_ip))
}

/// The same with other fields of the spec.
pub fn service_with(name: &str, cluster_ip: &str, fields: &Value) -> Value {
    let mut service = service(name, cluster_ip);
    for (field, value) in fields.as_object().expect("fields") {
        service["spec"][field] = value.clone();
    }
    service
}

/// Its endpoints.
pub fn slice(name: &str, endpoints: &[&str]) -> Value {
    let endpoints: Vec<IpAddr> = endpoints.iter().map(|text| ip(text)).collect();
    objects::slice("default", name, name, &endpoints)
}

/// Its port, under another protocol.
pub fn over(protocol: &str, mut object: Value) -> Value {
    let ports = if object["kind"] == "Service" { &mut object["spec"]["ports"] } else { &mut object["ports"] };
    ports[0]["protocol"] = json!(protocol);
    object
}
