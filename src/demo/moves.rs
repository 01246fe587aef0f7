//! Scenes of the demo about changes: an endpoint that is removed under traffic, and session affinity.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use netfilter::IpFamily;

use super::lab::{CLIENT, CLIENTS};
use super::screen::Style;
use super::traffic::{Reply, Tally, fair_range, stream};
use super::{CART, Demo, WEB};

/// The time covered by a line of the table of traffic.
const STEP: Duration = Duration::from_millis(250);
const STEPS_BEFORE: usize = 3;
/// By chance a pod gets no connection in this many steps in less than one of 10^10 runs.
const STEPS_SILENT: usize = 4;
/// How long the rules may take to follow, on a busy machine.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(15);

/// The pause between connections, which keeps the numbers readable.
const PACE: Duration = Duration::from_millis(4);

impl Demo {
    /// Removes an endpoint from its file while connections are made; then cuts off its pod.
    pub fn endpoint_goes(&mut self) -> Result<(), String> {
        let pods = self.example.pods_of(WEB);
        let victim = pods.get(1).cloned().ok_or_else(|| format!("{WEB} has too few pods"))?;
        let target = self.cluster_address(WEB)?;
        self.screen.heading(&format!("The endpoint of {victim} goes while connections are made"));
        let replies = stream(&self.lab.client, target, vec![CLIENT[0]], usize::MAX, PACE);
        let (mut total, mut end, mut last, mut silent) = (Tally::of(&pods), Instant::now(), None, 0);
        for _ in 0..STEPS_BEFORE {
            end += STEP;
            self.show_step("before", &pods, &take_until(&replies, end)?, &mut total);
        }
        let (file, gone) = self.example.remove_endpoints(&victim)?;
        let edited = Instant::now();
        self.show_edit(file, &gone);
        while silent < STEPS_SILENT && edited.elapsed() < UPDATE_TIMEOUT {
            end += STEP;
            let step = take_until(&replies, end)?;
            let hits: Vec<Instant> = step.iter().filter(|r| r.pod() == Some(&victim)).map(|r| r.at).collect();
            last = hits.into_iter().filter(|at| *at > edited).max().or(last);
            let tally = self.show_step(&format!("+{:.2} s", (end - edited).as_secs_f32()), &pods, &step, &mut total);
            let quiet = tally.answered() >= 20 && tally.pods.get(&victim) == Some(&0);
            silent = if quiet { silent + 1 } else { 0 };
        }
        drop(replies);
        let after = last.map_or(0.0, |at| (at - edited).as_secs_f32());
        let moved = format!("{victim} got its last connection {after:.2} s after the edit");
        self.screen.check(silent >= STEPS_SILENT, &moved);
        let failed: usize = total.failures.values().sum();
        self.screen.check(failed == 0, &format!("of {} connections none failed", total.answered() + failed));
        self.pod_dies(&victim, target)
    }

    fn pod_dies(&mut self, victim: &str, target: SocketAddr) -> Result<(), String> {
        let count = 200;
        self.lab.kill(victim)?;
        self.screen.heading(&format!("{victim} is cut off; {count} connections more"));
        let left: Vec<String> = self.example.pods_of(WEB).into_iter().filter(|pod| pod != victim).collect();
        let mut tally = Tally::of(&left);
        for reply in stream(&self.lab.client, target, vec![CLIENT[0]], count, Duration::ZERO) {
            tally.add(&reply);
        }
        self.screen.bars(&tally);
        let range = fair_range(count, left.len());
        let fair = tally.is_fair() && tally.answered() == count && tally.pods.len() == left.len();
        let (least, most) = (range.start(), range.end());
        self.screen.check(fair, &format!("all were answered, {least} to {most} by each pod that is left"));
        Ok(())
    }

    fn show_step(&self, when: &str, pods: &[String], replies: &[Reply], total: &mut Tally) -> Tally {
        let mut tally = Tally::of(pods);
        for reply in replies {
            tally.add(reply);
            total.add(reply);
        }
        let mut line = format!("{when:8}");
        for pod in pods {
            let count = tally.pods[pod];
            line += &format!("  {pod} {count:3} {}", self.screen.bar(count, tally.answered(), 20));
        }
        self.screen.text(&line);
        tally
    }

    /// Connects several clients repeatedly; then removes the endpoint of the first one's pod.
    pub fn affinity(&mut self) -> Result<(), String> {
        let rounds = 20;
        let target = self.cluster_address(CART)?;
        let (clients, all) = (CLIENTS.len(), CLIENTS.len() * rounds);
        self.screen.heading(&format!(
            "{all} connections from {clients} clients in turn to {CART}, which has session affinity"
        ));
        let before = self.visit(target, rounds);
        self.show_visits(&before, None);
        let faithful = before.values().all(|pods| pods.len() == 1) && before.len() == clients;
        self.screen.check(faithful, "all were answered, and each client stayed with one pod");

        let Some(victim) = before.values().next().and_then(|pods| pods.first().cloned()) else { return Ok(()) };
        self.screen.heading(&format!("The endpoint of {victim} goes; the same clients again"));
        let (file, gone) = self.example.remove_endpoints(&victim)?;
        self.show_edit(file, &gone);
        let left = self.example.pods_of(CART).len() - 1;
        self.proxy.wait(IpFamily::V4, &self.example.service(CART)?.port_name, left)?;
        let after = self.visit(target, rounds);
        self.show_visits(&after, Some(&before));
        let faithful = after.values().all(|pods| pods.len() == 1 && !pods.contains(&victim)) && after.len() == clients;
        self.screen.check(faithful, &format!("the clients of {victim} moved, and each stays with its new pod"));
        let unmoved = before.iter().all(|(client, pods)| pods.contains(&victim) || after.get(client) == Some(pods));
        self.screen.check(unmoved, "no other client moved");
        Ok(())
    }

    /// The pods, or errors, that each client met.
    fn visit(&self, target: SocketAddr, rounds: usize) -> BTreeMap<IpAddr, BTreeSet<String>> {
        let mut visits: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
        let replies = stream(&self.lab.client, target, CLIENTS.to_vec(), CLIENTS.len() * rounds, Duration::ZERO);
        for (client, reply) in CLIENTS.iter().cycle().zip(replies) {
            let met = reply.answer.map_or_else(|error| error, |(pod, _)| pod);
            visits.entry(*client).or_default().insert(met);
        }
        visits
    }

    fn show_edit(&self, file: &str, gone: &[String]) {
        self.screen.text(&format!("{file} is edited:"));
        gone.iter().for_each(|line| self.screen.text(&self.screen.styled(Style::Red, &format!("-{line}"))));
    }

    fn show_visits(
        &self,
        visits: &BTreeMap<IpAddr, BTreeSet<String>>,
        before: Option<&BTreeMap<IpAddr, BTreeSet<String>>>,
    ) {
        for (client, pods) in visits {
            let met = pods.iter().cloned().collect::<Vec<_>>().join(", ");
            let was = before.and_then(|before| before.get(client)).filter(|was| *was != pods);
            let note = was.map_or(String::new(), |was| {
                format!(", before {}", was.iter().cloned().collect::<Vec<_>>().join(", "))
            });
            self.screen.text(&format!(
                "{:12} always {}{note}",
                client.to_string(),
                self.screen.styled(Style::Blue, &met)
            ));
        }
    }

    fn cluster_address(&self, service: &str) -> Result<SocketAddr, String> {
        let found = self.example.service(service)?.cluster.iter().find(|address| address.is_ipv4());
        found.copied().ok_or_else(|| format!("{service} has no IPv4 cluster IP"))
    }
}

/// All replies before a moment.
fn take_until(replies: &Receiver<Reply>, end: Instant) -> Result<Vec<Reply>, String> {
    let mut taken = Vec::new();
    loop {
        match replies.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(reply) => taken.push(reply),
            Err(RecvTimeoutError::Timeout) => return Ok(taken),
            Err(RecvTimeoutError::Disconnected) => return Err("the client died".to_owned()),
        }
    }
}
