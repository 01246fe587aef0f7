//! `kube-proxy top` beside a proxy: it shows exactly the connections that were made.

use std::fs::{File, read_to_string};
use std::process::{Output, Stdio};

use golden::cluster::Protocol::{Tcp, Udp};
use golden::cluster::{Cluster, FAR_5, Family, POD_5, POD_6, POD_9, Service, eventually, ready};
use serde_json::json;

use super::{SOON, binary};

fn web() -> Service {
    Service::new("web", 75).endpoints([ready(POD_5), ready(FAR_5)])
}

fn dns() -> Service {
    Service::new("dns", 76).protocol("UDP").endpoints([ready(POD_5)])
}

fn idle() -> Service {
    Service::new("idle", 77).endpoints([ready(POD_6), ready(FAR_5)])
}

fn counting(cluster: Cluster, level: &str) -> Cluster {
    cluster.configured("serviceMetrics", json!({ "level": level }))
}

/// Makes connections to `web` and `dns` in both families.
fn connect(cluster: &Cluster, to_web: usize, to_dns: usize) {
    for family in Family::BOTH {
        let _ = cluster.pod(POD_9).reach_times(Tcp, web().address(family), to_web);
        let _ = cluster.pod(POD_9).reach_times(Udp, dns().address(family), to_dns);
    }
}

/// Runs `top` on the node until it ends. Names of IPVS mode come from the running proxy.
fn top(cluster: &Cluster, arguments: &str) -> Output {
    let mut command = cluster.node().command(&binary().to_string_lossy());
    command.envs(cluster.environment()).arg("top").args(arguments.split(' ')).output().expect("it starts")
}

fn tables(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The cells of the rows of a Service, in all tables.
fn rows<'a>(text: &'a str, service: &str) -> Vec<Vec<&'a str>> {
    let prefixes = [format!("default/{service}:"), format!("default/{service}/")];
    let of_service = text.lines().filter(|line| prefixes.iter().any(|prefix| line.starts_with(prefix)));
    of_service.map(|line| line.split_whitespace().collect()).collect()
}

/// A cell that is a number: 2 for new connections, 3 for all of them.
fn number(row: &[&str], column: usize) -> usize {
    row.get(column).and_then(|cell| cell.parse().ok()).unwrap_or_else(|| panic!("no number {column} in {row:?}"))
}

/// All connections to each endpoint of a Service, in the first table.
fn endpoints(text: &str, service: &str) -> Vec<usize> {
    let below = text.lines().skip_while(|line| !line.starts_with(&format!("default/{service}"))).skip(1);
    let lines = below.take_while(|line| line.starts_with(' '));
    lines.map(|line| number(&line.split_whitespace().collect::<Vec<_>>(), 3)).collect()
}

/// In iptables and IPVS mode the kernel counts whether `serviceMetrics` is set or not.
pub(super) fn top_shows_the_connections_that_were_made(cluster: Cluster) {
    let cluster = cluster.running(&[web(), dns(), idle()]);
    let path = cluster.directory().join("top");
    let file = File::create(&path).expect("a file");
    let mut command = cluster.node().command(&binary().to_string_lossy());
    command.envs(cluster.environment()).args(["top", "--interval", "500ms", "--count", "0"]);
    let mut live = command.stdout(Stdio::from(file)).spawn().expect("it starts");
    let shown = || read_to_string(&path).expect("a file");
    eventually("the first table", SOON, || !rows(&shown(), "web").is_empty());
    connect(&cluster, 12, 7);
    let new = |service| rows(&shown(), service).iter().map(|row| number(row, 2)).sum::<usize>();
    // Of both families.
    eventually("new connections are those that were made", SOON, || (new("web"), new("dns")) == (24, 14));
    let total = |text: &str, service: &str| rows(text, service).last().map(|row| number(row, 3));
    let last = shown();
    assert_eq!((total(&last, "web"), total(&last, "dns")), (Some(24), Some(14)), "{last}");
    live.kill().expect("it runs");
    live.wait().expect("it ends");
    assert_eq!((new("web"), new("dns"), new("idle")), (24, 14, 0), "{}", shown());

    let text = tables(&top(&cluster, "--count 1 --interval 100ms --endpoints --sort total"));
    assert_eq!(["web", "dns", "idle"].map(|service| total(&text, service)), [Some(24), Some(14), Some(0)], "{text}");
    assert_eq!(endpoints(&text, "web").iter().sum::<usize>(), 24, "{text}");
    assert_eq!(endpoints(&text, "dns").iter().sum::<usize>(), 14, "{text}");
    assert_eq!((endpoints(&text, "web").len(), endpoints(&text, "dns").len()), (4, 2), "{text}");
    assert!(rows(&text, "idle")[0].ends_with(&["unused"]), "{text}");
    assert!(text.find("default/web") < text.find("default/dns"), "the order is that of totals: {text}");
}

pub(super) fn top_shows_the_connections_that_service_metrics_count(cluster: Cluster) {
    top_shows_the_connections_that_were_made(counting(cluster, "Endpoints"));
}

pub(super) fn top_says_that_endpoints_are_not_counted(cluster: Cluster) {
    let cluster = counting(cluster, "Services").running(&[web(), dns()]);
    connect(&cluster, 3, 2);
    let text = tables(&top(&cluster, "--count 1 --interval 100ms --endpoints"));
    assert_eq!((number(&rows(&text, "web")[0], 3), number(&rows(&text, "dns")[0], 3)), (6, 4), "{text}");
    assert!(text.contains("--service-metrics=Endpoints") && endpoints(&text, "web").is_empty(), "{text}");
}

/// Never zeros, as if there were no connections.
pub(super) fn top_says_what_to_set_where_nothing_counts(cluster: Cluster) {
    let cluster = cluster.running(&[web()]);
    connect(&cluster, 1, 0);
    let output = top(&cluster, "--count 1 --interval 100ms");
    let problem = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{problem}");
    assert!(problem.contains("start kube-proxy with --service-metrics=Endpoints"), "{problem}");
}

pub(super) fn top_fails_with_a_status_that_tells_why(cluster: Cluster) {
    let status = |output: &Output| (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned());
    let (code, problem) = status(&top(&cluster, "--count 1"));
    assert!(code == Some(2) && problem.contains("no rules of a kube-proxy"), "{code:?}: {problem}");
    for wrong in ["--interval 1ms", "--sort sideways", "--unknown"] {
        let (code, problem) = status(&top(&cluster, wrong));
        assert!(code == Some(22) && problem.contains("Usage: kube-proxy top"), "{code:?}: {problem}");
    }
    let cluster = cluster.running(&[web()]);
    let mut unprivileged = cluster.node().command("setpriv");
    unprivileged.envs(cluster.environment()).args(["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]);
    let output = unprivileged.arg(binary()).args(["top", "--count", "1"]).output().expect("setpriv starts");
    let (code, problem) = status(&output);
    assert!(code == Some(2) && problem.contains("run it as root"), "{code:?}: {problem}");
}
