//! The report as one HTML file for people.
//!
//! The file needs no network and no script: the style sheet and the pictures are in it. It follows the reader's light or dark
//! colours and prints with every fold open.

mod gather;
mod service;

use std::fmt::Write;

use k8s_openapi::jiff::Zoned;
use proxier_inspect::drift::Difference;
use proxier_inspect::node::Focus;

use self::gather::ServiceDetails;
use super::svg::escaped;
use super::text::facts_text;
use crate::inspect::NodeInspection;
use crate::inspect::report::Report;

/// The style sheet.
const STYLE: &str = include_str!("page.css");
/// Up to this many Service ports have their picture, rules and traces on the page.
const MOST_IN_FULL: usize = 20;

/// Writes the page about a node: `report` as collected from `seen`, whose rules are read for chains and traces.
pub fn page(seen: &mut NodeInspection, report: &Report, focus: &Focus) -> String {
    let in_full = report.services.len() <= MOST_IN_FULL;
    let details: Vec<Option<ServiceDetails>> =
        report.services.iter().map(|view| in_full.then(|| gather::details(seen, view))).collect();
    let title = title(focus);
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{0}</title>\n<style>\n{STYLE}</style>\n\
         </head>\n<body>\n<header>\n<h1>{0}</h1>\n{1}</header>\n<main>\n",
        escaped(&title),
        heading(report)
    );
    out += &verdict(report);
    if report.services.len() > 1 {
        out += &contents(report);
    }
    if !in_full {
        let _ = writeln!(
            out,
            "<p class=\"dim\">Pictures, rules and traces are shown for up to {MOST_IN_FULL} Service ports: give \
             <code>--service namespace/name</code>.</p>"
        );
    }
    for (number, (view, details)) in report.services.iter().zip(&details).enumerate() {
        out += &service::section(number, view, details.as_ref());
    }
    out += &drift(report.differences.as_deref().unwrap_or_default());
    out += &node(report);
    out + "</main>\n</body>\n</html>\n"
}

fn title(focus: &Focus) -> String {
    let node = nix::unistd::gethostname().unwrap_or_default();
    let node = node.to_string_lossy();
    match (&focus.service, focus.endpoint) {
        (Some(service), _) => format!("Service {service} on {node}"),
        (None, Some(ip)) => format!("Services with endpoint {ip} on {node}"),
        (None, None) => format!("Services on {node}"),
    }
}

fn heading(report: &Report) -> String {
    let mode = report.facts.mode.map_or_else(|| "no kube-proxy rules".to_owned(), |mode| format!("mode {mode}"));
    let now = Zoned::now().strftime("%Y-%m-%d %H:%M:%S %:z");
    let version = env!("CARGO_PKG_VERSION");
    let flavour = format!("iptables flavour {}", report.facts.flavour);
    format!("<p class=\"dim\">{} · {} · {now} · kube-proxy in Rust {version}</p>\n", escaped(&mode), escaped(&flavour))
}

/// What the page says first: what could not be read, and whether the rules match the objects.
fn verdict(report: &Report) -> String {
    let mut out = String::new();
    if !report.unread.is_empty() {
        out += "<div class=\"verdict warn\">\n<strong>Not everything could be read.</strong>\n<ul>\n";
        for unread in &report.unread {
            let _ = writeln!(out, "<li>{}: {}</li>", escaped(&unread.what), escaped(&unread.why));
        }
        out += "</ul>\n</div>\n";
    }
    let (class, text) = match report.differences.as_deref() {
        None => (
            "warn",
            "The rules were not compared with the cluster's objects: give --config, --kubeconfig or --objects."
                .to_owned(),
        ),
        Some([]) => ("good", "The rules match the cluster's objects.".to_owned()),
        Some([_]) => ("bad", "The rules differ from the cluster's objects in one place, listed below.".to_owned()),
        Some(all) => {
            ("bad", format!("The rules differ from the cluster's objects in {} places, listed below.", all.len()))
        }
    };
    let _ = writeln!(out, "<p class=\"verdict {class}\"><strong>{text}</strong></p>");
    for family in &report.facts.rules_in_other_flavour {
        let _ = writeln!(
            out,
            "<p class=\"verdict warn\">{family}: the other flavour of iptables holds kube-proxy rules too.</p>"
        );
    }
    out
}

fn contents(report: &Report) -> String {
    let mut out = "<nav>\n".to_owned();
    for (number, view) in report.services.iter().enumerate() {
        let _ = writeln!(
            out,
            "<a href=\"#port-{number}\">{} {} {}</a>",
            escaped(&view.name),
            escaped(view.protocol),
            escaped(view.family)
        );
    }
    out + "</nav>\n"
}

fn drift(differences: &[Difference]) -> String {
    if differences.is_empty() {
        return String::new();
    }
    let mut out = "<h2 id=\"drift\">Differences from the cluster's objects</h2>\n".to_owned();
    for difference in differences {
        let Difference { family, kind, expected, found, service, .. } = difference;
        let of = service.as_ref().map(|service| format!(" · {service}")).unwrap_or_default();
        let place = difference.place();
        let _ = writeln!(out, "<h3>{} · {} · {family}{}</h3>\n<pre>", kind.name(), escaped(&place), escaped(&of));
        for (sign, class, rule) in [('-', "removed", expected), ('+', "added", found)] {
            if let Some(rule) = rule {
                let _ = writeln!(out, "<span class=\"{class}\">{sign} {}</span>", escaped(rule));
            }
        }
        out += "</pre>\n";
    }
    out + "<p class=\"dim\">- expected by the objects, + found in the kernel</p>\n"
}

fn node(report: &Report) -> String {
    let mut out = "<h2 id=\"node\">Node</h2>\n".to_owned();
    let _ = writeln!(out, "<pre>{}</pre>", escaped(facts_text(&report.facts).trim_end()));
    if !report.unused_chains.is_empty() {
        let _ = writeln!(
            out,
            "<details><summary>{} Service chains without a jump to them</summary><pre>{}</pre></details>",
            report.unused_chains.len(),
            escaped(&report.unused_chains.join("\n"))
        );
    }
    if report.not_understood.is_empty() {
        return out;
    }
    let _ = writeln!(
        out,
        "<details><summary>{} rules of other programs are not understood</summary>\n<div class=\"scroll\"><table>\n\
         <tr><th>Place</th><th>Why</th><th>Rule</th></tr>",
        report.not_understood.len()
    );
    for rule in &report.not_understood {
        let [place, why, rule] = [&rule.place, &rule.why, &rule.rule].map(|text| escaped(text));
        let _ = writeln!(out, "<tr><td>{place}</td><td>{why}</td><td><code>{rule}</code></td></tr>");
    }
    out + "</table></div></details>\n"
}
