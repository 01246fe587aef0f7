//! Adds up refused packets, so that no total ever decreases.
//!
//! As with connections, the kernel's counts end with the rule or element that has them: a Service whose endpoints are back
//! refuses nothing, and its total stays for an hour.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use proxier::traffic::{RefusalReason, RefusalSample, RefusedBy};

use super::admission::{Total, admit};
use super::totals::{KEPT, TrafficSelection};
use crate::metrics::{FamilyTraffic, RefusedTraffic};

/// What refused packets were sent to, and why they were refused: one value of the metric.
type Refusal = (RefusedBy, RefusalReason);

/// The totals of one family.
#[derive(Debug, Default)]
pub struct RefusalTotals {
    /// The last count of each of the kernel's objects.
    last: HashMap<Box<[u8]>, u64>,
    totals: BTreeMap<Refusal, RefusalTotal>,
    omitted: usize,
}

#[derive(Debug)]
struct RefusalTotal {
    packets: u64,
    seen: Instant,
}

impl Total for RefusalTotal {
    fn new(now: Instant) -> Self {
        Self { packets: 0, seen: now }
    }

    fn seen(&self) -> Instant {
        self.seen
    }
}

impl RefusalTotals {
    /// Adds a complete read of the kernel at `now`.
    pub fn add(&mut self, selection: &TrafficSelection, mut samples: Vec<RefusalSample>, now: Instant) {
        samples.retain(|sample| selection.is_selected(sample.by.service()));
        self.totals.retain(|_, total| now.saturating_duration_since(total.seen) < KEPT);
        let present: BTreeSet<Refusal> = samples.iter().map(|sample| (sample.by.clone(), sample.reason)).collect();
        self.omitted = admit(&mut self.totals, &present.iter().collect(), selection.limit, now);
        let mut last = HashMap::with_capacity(samples.len());
        for RefusalSample { source, by, reason, packets } in samples {
            let Some(total) = self.totals.get_mut(&(by, reason)) else { continue };
            // A lower count is that of an object that was made anew.
            let known = self.last.get(&source).copied().filter(|known| *known <= packets).unwrap_or(0);
            total.packets = total.packets.saturating_add(packets - known);
            total.seen = now;
            last.insert(source, packets);
        }
        self.last = last;
    }

    /// Puts the totals where they are shown.
    pub fn show(&self, traffic: &mut FamilyTraffic) {
        let refused = self.totals.iter().map(|((by, reason), total)| RefusedTraffic {
            by: by.clone(),
            reason: *reason,
            packets: total.packets,
        });
        traffic.refused = refused.collect();
        traffic.omitted_refusals = self.omitted;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proxier::model::{NamespacedName, Protocol, ServicePortName};

    use super::*;

    const REASON: RefusalReason = RefusalReason::NoEndpoints;

    fn sample(port: &str, rule: u8, packets: u64) -> RefusalSample {
        let name = ServicePortName::parse(port, Protocol::Tcp).expect("a name");
        let source = [port.as_bytes(), &[rule]].concat().into();
        RefusalSample { source, by: RefusedBy::Port(name), reason: REASON, packets }
    }

    fn selection(limit: usize) -> TrafficSelection {
        TrafficSelection { limit, ..TrafficSelection::default() }
    }

    fn shown(totals: &RefusalTotals) -> (String, usize) {
        let mut traffic = FamilyTraffic::default();
        totals.show(&mut traffic);
        let values = traffic.refused.iter().map(|refused| format!("{} {}", refused.by.service().name, refused.packets));
        (values.collect::<Vec<_>>().join(", "), traffic.omitted_refusals)
    }

    #[test]
    fn total_of_all_rules_of_a_service_port_never_decreases() {
        let (mut totals, now) = (RefusalTotals::default(), Instant::now());
        let steps = [
            (vec![sample("a/web", 1, 5), sample("a/web", 2, 2)], "web 7"),
            (vec![sample("a/web", 1, 6), sample("a/web", 2, 2)], "web 8"),
            // It has an endpoint for a while, then rules that count from zero.
            (Vec::new(), "web 8"),
            (vec![sample("a/web", 1, 0), sample("a/web", 2, 1)], "web 9"),
            (vec![sample("a/web", 1, 3), sample("a/web", 2, 0)], "web 12"),
        ];
        for (samples, total) in steps {
            totals.add(&selection(10), samples, now);
            assert_eq!(shown(&totals), (total.to_owned(), 0));
        }
        totals.add(&selection(10), Vec::new(), now + KEPT - Duration::from_secs(1));
        assert_eq!(shown(&totals).0, "web 12");
        totals.add(&selection(10), Vec::new(), now + KEPT);
        assert_eq!(shown(&totals).0, "");
    }

    #[test]
    fn values_beyond_the_limit_are_omitted_until_others_are_gone() {
        let (mut totals, now) = (RefusalTotals::default(), Instant::now());
        totals.add(&selection(2), vec![sample("a/1", 1, 1), sample("a/3", 1, 3), sample("a/2", 1, 2)], now);
        assert_eq!(shown(&totals), ("1 1, 2 2".to_owned(), 1));
        totals.add(&selection(2), vec![sample("a/1", 1, 1), sample("a/3", 1, 3)], now);
        assert_eq!(shown(&totals), ("1 1, 3 3".to_owned(), 0));
    }

    #[test]
    fn only_selected_namespaces_are_counted() {
        let (mut totals, now) = (RefusalTotals::default(), Instant::now());
        let service = RefusedBy::Service(NamespacedName::new("b", "web"));
        let unknown = RefusalSample { by: service, reason: RefusalReason::UnknownPort, ..sample("b/web", 1, 4) };
        let only = TrafficSelection { namespaces: ["b".into()].into(), ..selection(1) };
        totals.add(&only, vec![sample("a/other", 1, 1), unknown], now);
        assert_eq!(shown(&totals), ("web 4".to_owned(), 0));
    }
}
