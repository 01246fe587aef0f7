//! How long objects could not be read from the API server.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::Result;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};

use super::make::family;

const NAME: &str = "kubeproxy_watch_failing_seconds";
const HELP: &str = "[ALPHA] How long objects of a kind could not be read from the API server, up to now, 0 if they can";

/// How long each kind could not be read, by its name.
pub type ReadOutages = Box<dyn Fn() -> BTreeMap<&'static str, Duration> + Send + Sync>;

/// Reads the durations at each scrape.
pub struct OutageCollector {
    read: ReadOutages,
    desc: Desc,
}

impl OutageCollector {
    pub fn new(read: ReadOutages) -> Result<Self> {
        let labels = vec!["kind".to_owned()];
        Ok(Self { read, desc: Desc::new(NAME.to_owned(), HELP.to_owned(), labels, Default::default())? })
    }
}

impl Collector for OutageCollector {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let durations = (self.read)();
        let labels: Vec<_> = durations.iter().map(|(kind, lasted)| ([("kind", *kind)], lasted.as_secs_f64())).collect();
        let values: Vec<(&[(&str, &str)], f64)> = labels.iter().map(|(labels, value)| (&labels[..], *value)).collect();
        if values.is_empty() { Vec::new() } else { vec![family(NAME, HELP, MetricType::GAUGE, &values)] }
    }
}
