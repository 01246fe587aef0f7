//! `kube-proxy demo`: a node, pods and a proxy in network namespaces, for users without a cluster.
//!
//! The exit code is 0 if every claim held. Like `run.rs` it is a composition root: it builds a node before it runs the
//! proxy.

mod example;
mod lab;
mod machine;
mod moves;
mod proxy;
mod rules;
mod screen;
mod traffic;

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use netfilter::IpFamily;
use netfilter::kernel::netns;
use nix::sys::signal::{SigSet, Signal};

use self::example::{Example, Service};
use self::lab::{CLIENT, GATEWAY, Lab, OUTSIDE};
use self::proxy::Proxy;
use self::screen::{Screen, Style};
use self::traffic::{Reply, Tally, fair_range, stream};

pub const WEB: &str = "shop/web";
pub const CART: &str = "shop/cart";

/// The state of the demo.
pub struct Demo {
    screen: Screen,
    example: Example,
    lab: Lab,
    proxy: Proxy,
}

/// Runs the demo; without root in a user namespace, if that is allowed.
pub fn run() -> ExitCode {
    match show() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kube-proxy demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show() -> Result<bool, String> {
    unshare_process()?;
    end_on_signals()?;
    let screen = Screen::new();
    screen.line(&screen.styled(Style::Bold, "A node and its proxy, without a cluster"));
    screen.text("Every machine here is a network namespace of its own. The host's rules and interfaces are not");
    screen.text("touched, and all of it is gone when this program ends, however it ends.");
    let example = Example::write(std::env::temp_dir().join("examples"))?;
    let lab = Lab::new(&example)?;
    show_machines(&screen, &example, &lab);
    let proxy = start_proxy(&screen, &example, &lab)?;
    let mut demo = Demo { screen, example, lab, proxy };
    demo.show_chains()?;
    demo.cluster_ip()?;
    demo.node_port()?;
    demo.endpoint_goes()?;
    demo.affinity()?;
    Ok(demo.screen.end())
}

/// Moves this process to its own network namespace, with its files in memory only.
fn unshare_process() -> Result<(), String> {
    let scratch = std::env::temp_dir();
    // A user's PATH often lacks the folders of iptables and ip; the host's lock must not be taken.
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(OsStr::new(":/usr/sbin:/sbin"));
    let lock: OsString = scratch.join("xtables.lock").into();
    netns::unshare_process(&scratch, &[("PATH", &path), ("XTABLES_LOCKFILE", &lock)]).map_err(|error| error.to_string())
}

/// Exits on a signal. Nothing has to be cleaned up; until this call the default action does the same.
fn end_on_signals() -> Result<(), String> {
    let failure = |error: &dyn std::fmt::Display| format!("cannot wait for signals: {error}");
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    // Threads that are started later inherit the blocked signals.
    signals.thread_block().map_err(|error| failure(&error))?;
    let wait = move || {
        let signal = signals.wait().map_or(1, |signal| 128 + signal as i32);
        eprintln!("\nkube-proxy demo: interrupted; nothing is left behind");
        std::process::exit(signal);
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(|error| failure(&error))?;
    Ok(())
}

fn show_machines(screen: &Screen, example: &Example, lab: &Lab) {
    screen.heading("Machines");
    let list = |addresses: &[IpAddr]| {
        let there = addresses.iter().filter(|ip| lab.families.contains(&IpFamily::of(ip)));
        there.map(|ip| format!("{:15}", ip.to_string())).collect::<Vec<_>>().join(" ")
    };
    screen.text(&format!("{:10} {} the node; the proxy works here", example.node, list(&example.node_addresses)));
    for pod in &example.pods {
        let addresses = format!("{:31}", list(&pod.addresses));
        screen.text(&format!("{:10} {addresses} a pod of {}, answers with its name", pod.name, pod.service));
    }
    screen.text(&format!("{:10} {} a pod that uses the Services", "client", list(&CLIENT)));
    screen.text(&format!("{:10} {:31} a machine that is no part of the cluster", "outside", OUTSIDE.to_string()));
}

fn start_proxy(screen: &Screen, example: &Example, lab: &Lab) -> Result<Proxy, String> {
    screen.heading("The proxy starts");
    screen.text(&format!("$ {}", Proxy::arguments(example).join(" ")));
    let begun = Instant::now();
    let proxy = Proxy::start(example, &lab.families)?;
    for family in &proxy.families {
        proxy.wait(*family, &example.service(WEB)?.port_name, example.pods_of(WEB).len())?;
    }
    proxy.wait(IpFamily::V4, &example.service(CART)?.port_name, example.pods_of(CART).len())?;
    let families: Vec<&str> = proxy.families.iter().map(|family| family.name()).collect();
    let flavour = proxy.choice.flavour.map_or_else(String::new, |flavour| format!(", iptables flavour {flavour}"));
    let took = begun.elapsed().as_secs_f32();
    screen.text(&format!("{took:.2} s later the rules are there: {}{flavour}.", families.join(" and ")));
    Ok(proxy)
}

impl Demo {
    fn show_chains(&mut self) -> Result<(), String> {
        let service = self.example.service(WEB)?;
        self.screen.heading(&format!("The chains of {}, as iptables-save prints them", service.port_name));
        let rules = self.proxy.wait(IpFamily::V4, &service.port_name, self.example.pods_of(WEB).len())?;
        let name_of = |destination: &str| {
            let is_at = |pod: &&example::Pod| {
                pod.addresses.iter().any(|ip| SocketAddr::new(*ip, pod.port).to_string() == destination)
            };
            self.example.pods.iter().find(is_at).map_or_else(|| destination.to_owned(), |pod| pod.name.clone())
        };
        let steps = rules.explain(&service.port_name, name_of);
        for step in &steps {
            self.screen.text(&step.rule);
            self.screen.text(&self.screen.styled(Style::Dim, &format!("    {}", step.meaning)));
        }
        Ok(())
    }

    fn cluster_ip(&mut self) -> Result<(), String> {
        let targets = self.example.service(WEB)?.cluster.clone();
        for (target, count) in targets.into_iter().zip([300, 150]) {
            let family = IpFamily::of(&target.ip());
            if !self.proxy.families.contains(&family) {
                continue;
            }
            self.screen.heading(&format!("{count} connections from client to the cluster IP: {target}"));
            let source = CLIENT[usize::from(family == IpFamily::V6)];
            let replies: Vec<Reply> =
                stream(&self.lab.client, target, vec![source], count, Duration::ZERO).iter().collect();
            self.show_balance(&replies, count);
            let seen = all_saw(&replies, source, count);
            self.screen.check(seen, &format!("the pods saw the client's own address, {source}"));
        }
        Ok(())
    }

    fn node_port(&mut self) -> Result<(), String> {
        let Service { node_port: Some(port), .. } = *self.example.service(WEB)? else {
            return Err(format!("the examples' {WEB} has no node port"));
        };
        let target = SocketAddr::new(self.example.node_addresses[0], port);
        let count = 300;
        self.screen.heading(&format!("{count} connections from outside to the node port: {target}"));
        let replies: Vec<Reply> =
            stream(&self.lab.outside, target, vec![OUTSIDE], count, Duration::ZERO).iter().collect();
        self.show_balance(&replies, count);
        let seen = all_saw(&replies, GATEWAY, count);
        self.screen.check(seen, &format!("the pods saw the node, {GATEWAY}: such connections are masqueraded"));
        Ok(())
    }

    fn show_balance(&mut self, replies: &[Reply], count: usize) {
        let mut tally = Tally::of(&self.example.pods_of(WEB));
        replies.iter().for_each(|reply| tally.add(reply));
        self.screen.bars(&tally);
        let range = fair_range(count, tally.pods.len());
        let fair = tally.is_fair() && tally.answered() == count;
        let (least, most) = (range.start(), range.end());
        self.screen
            .check(fair, &format!("all were answered, {least} to {most} by each pod: evenly, as far as chance goes"));
    }
}

fn all_saw(replies: &[Reply], client: IpAddr, count: usize) -> bool {
    replies.len() == count && replies.iter().all(|reply| reply.answer.as_ref().is_ok_and(|(_, peer)| *peer == client))
}
