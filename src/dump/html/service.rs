//! One Service port on the HTML page.

use std::fmt::Write;

use proxier_inspect::services::{Address, EndpointView, ServicePortView};

use super::gather::ServiceDetails;
use crate::dump::svg::{self, escaped};
use crate::dump::{graph, text};

/// A picture of more endpoints than these is longer than a reader follows: the table has them all.
const MOST_IN_PICTURE: usize = 60;

/// The section of a Service port; `number` makes its anchor. Without `details` it has tables only.
pub fn section(number: usize, view: &ServicePortView, details: Option<&ServiceDetails>) -> String {
    let mut out = format!(
        "<section>\n<h2 id=\"port-{number}\">{}<small>{} {}</small></h2>\n",
        escaped(&view.name),
        escaped(view.protocol),
        escaped(view.family)
    );
    for note in &view.notes {
        let _ = writeln!(out, "<p class=\"verdict warn\">{}</p>", escaped(note));
    }
    let policies = text::policies(view);
    if !policies.is_empty() {
        let _ = writeln!(out, "<p>{}</p>", escaped(&policies));
    }
    if details.is_some() && view.endpoints.len() <= MOST_IN_PICTURE {
        let _ = writeln!(out, "<figure>\n{}</figure>", svg::draw_untitled(&graph::graph(view)));
    }
    out += "<h3>Addresses</h3>\n";
    out += &table(
        &["Address", "Kind", "Packets go", "Connections", "Chain", "Scheduler", "Bound", "Sets"],
        view.addresses.iter().map(address).collect(),
    );
    out += "<h3>Endpoints</h3>\n";
    let endpoints = table(
        &["Endpoint", "State", "Share", "Local share", "Connections", "Chain", "Weight", "Active", "Inactive", "Flows"],
        view.endpoints.iter().map(endpoint).collect(),
    );
    out += if endpoints.is_empty() { "<p>No endpoints.</p>\n" } else { &endpoints };
    if text::counts_by_rules(view) {
        let _ = writeln!(out, "<p>{}</p>", escaped(text::COUNTED_SINCE));
    }
    details.into_iter().for_each(|details| out += &folds(details));
    out + "</section>\n"
}

fn address(address: &Address) -> Vec<String> {
    let [scheduler, device, sets] = text::server(address, true);
    let count = text::of_address(address);
    let (kind, fate) = (address.kind.name().to_owned(), text::fate(address).to_owned());
    let chain = address.chain.clone().unwrap_or_default();
    vec![text::spelled(address), kind, fate, count, chain, scheduler, device, sets]
}

fn endpoint(endpoint: &EndpointView) -> Vec<String> {
    let [weight, active, inactive] = text::real(endpoint);
    vec![
        endpoint.address.map_or_else(|| "unknown".to_owned(), |address| address.to_string()),
        text::state(endpoint),
        text::share(endpoint.share),
        text::share(endpoint.local_share),
        text::of_endpoint(endpoint),
        endpoint.chain.clone().unwrap_or_default(),
        weight,
        active,
        inactive,
        text::flows(endpoint),
    ]
}

/// A table without the columns that are empty in every row; nothing without rows.
fn table(headings: &[&str], rows: Vec<Vec<String>>) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let shown: Vec<usize> = (0..headings.len())
        .filter(|at| rows.iter().any(|row| row.get(*at).is_some_and(|cell| !cell.is_empty())))
        .collect();
    let mut out = "<div class=\"scroll\"><table>\n<tr>".to_owned();
    shown.iter().for_each(|at| out += &format!("<th>{}</th>", headings[*at]));
    out += "</tr>\n";
    for row in &rows {
        out += "<tr>";
        shown.iter().for_each(|at| out += &format!("<td>{}</td>", escaped(&row[*at])));
        out += "</tr>\n";
    }
    out + "</table></div>\n"
}

fn folds(details: &ServiceDetails) -> String {
    let mut out = String::new();
    if !details.chains.is_empty() {
        let _ = writeln!(out, "<details><summary>Rules: {} chains</summary>", details.chains.len());
        for chain in &details.chains {
            let _ = writeln!(out, "<h3>{}</h3>\n<pre>{}</pre>", escaped(&chain.name), escaped(&chain.rules.join("\n")));
        }
        out += "</details>\n";
    }
    for trace in &details.traces {
        let text = match &trace.result {
            Ok(text) => text.trim_end().to_owned(),
            Err(why) => format!("cannot trace it: {why}"),
        };
        let _ = writeln!(
            out,
            "<details><summary>Trace {}</summary><pre>{}</pre></details>",
            escaped(&trace.connection),
            escaped(&text)
        );
    }
    out
}
