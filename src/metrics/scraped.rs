//! A metric whose values are read at each scrape.

use prometheus::Result;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};

use super::make::family;

/// The values of labels, and the value that they have.
pub type Sample<const N: usize> = ([&'static str; N], f64);

/// A metric with `N` labels, which is not shown while it has no values.
pub struct ScrapedMetric<const N: usize> {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    labels: [&'static str; N],
    read: Box<dyn Fn() -> Vec<Sample<N>> + Send + Sync>,
    desc: Desc,
}

impl<const N: usize> ScrapedMetric<N> {
    /// A metric of a kind. `read` is called at each scrape.
    ///
    /// # Errors
    /// An invalid name.
    pub fn new(
        (name, help): (&'static str, &'static str),
        kind: MetricType,
        labels: [&'static str; N],
        read: impl Fn() -> Vec<Sample<N>> + Send + Sync + 'static,
    ) -> Result<Self> {
        let names = labels.map(str::to_owned).to_vec();
        let desc = Desc::new(name.to_owned(), help.to_owned(), names, Default::default())?;
        Ok(Self { name, help, kind, labels, read: Box::new(read), desc })
    }
}

impl<const N: usize> Collector for ScrapedMetric<N> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let samples = (self.read)();
        let labelled = |values: &[&'static str; N]| self.labels.iter().copied().zip(values.iter().copied()).collect();
        let labelled: Vec<(Vec<(&str, &str)>, f64)> =
            samples.iter().map(|(values, value)| (labelled(values), *value)).collect();
        let values: Vec<(&[(&str, &str)], f64)> = labelled.iter().map(|(labels, value)| (&**labels, *value)).collect();
        if values.is_empty() { Vec::new() } else { vec![family(self.name, self.help, self.kind, &values)] }
    }
}
