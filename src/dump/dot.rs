//! Renders graphs in the DOT language of Graphviz.

use std::fmt::Write;

use super::graph::{Graph, Kind};

/// One digraph with a cluster for each.
#[must_use]
pub fn draw(graphs: &[Graph]) -> String {
    let mut out = "digraph kube_proxy {\n  rankdir=LR;\n  node [shape=box, fontname=\"sans-serif\"];\n".to_owned();
    for (number, graph) in graphs.iter().enumerate() {
        let _ = writeln!(out, "  subgraph cluster_{number} {{");
        let _ = writeln!(out, "    label=\"{}\\n{}\";", escaped(&graph.title), escaped(&graph.subtitle));
        for (at, node) in graph.nodes.iter().enumerate() {
            let lines: Vec<String> = node.lines.iter().map(|line| escaped(line)).collect();
            let style = match node.kind {
                Kind::Address => "style=rounded",
                Kind::Choice => "shape=ellipse",
                Kind::Endpoint => "style=filled, fillcolor=\"#d7ecd9\"",
                Kind::Unused => "style=dashed, fontcolor=\"#777777\"",
                Kind::Refused => "style=filled, fillcolor=\"#f6d5d5\"",
            };
            let _ = writeln!(out, "    n{number}_{at} [label=\"{}\", {style}];", lines.join("\\n"));
        }
        for edge in &graph.edges {
            let (from, to, label) = (edge.from, edge.to, escaped(&edge.label));
            let label = if label.is_empty() { label } else { format!(" [label=\"{label}\"]") };
            let _ = writeln!(out, "    n{number}_{from} -> n{number}_{to}{label};");
        }
        out += "  }\n";
    }
    out + "}\n"
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}
