//! Draws graphs as an SVG document that needs neither fonts nor scripts.
//!
//! Boxes stand in three columns: addresses, choices, ends. The width of an arrow is its share of the traffic. Colours are
//! presentation attributes, so the style sheet of a page that contains the drawing overrides them by class.

use std::fmt::Write;

use super::graph::{Graph, Kind, Node};

const LINE: f64 = 17.0;
const PADDING: f64 = 10.0;
const GAP: f64 = 18.0;
const MARGIN: f64 = 24.0;
const CHARACTER: f64 = 8.0;
const BETWEEN: f64 = 130.0;
const TITLE: f64 = 64.0;
/// Longer lines are broken.
const LONGEST: usize = 34;

#[derive(Clone, Copy, Debug)]
struct Rectangle {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

/// One document with the graphs under each other, each under its title.
#[must_use]
pub fn draw(graphs: &[Graph]) -> String {
    document(graphs.iter().map(one).collect())
}

/// A document with one graph and no title.
#[must_use]
pub fn draw_untitled(graph: &Graph) -> String {
    document(vec![picture(graph, GAP)])
}

fn document(drawn: Vec<(String, f64, f64)>) -> String {
    let width = drawn.iter().map(|(_, width, _)| *width).fold(320.0, f64::max);
    let height: f64 = drawn.iter().map(|(_, _, height)| *height).sum::<f64>().max(TITLE);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"DejaVu Sans, Verdana, sans-serif\" font-size=\"12\">\n\
         <rect class=\"paper\" width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let mut y = 0.0;
    for (body, _, height) in drawn {
        let _ = write!(out, "<g transform=\"translate(0 {y:.1})\">\n{body}</g>\n");
        y += height;
    }
    out + "</svg>\n"
}

/// A graph under its title: elements, width, height.
fn one(graph: &Graph) -> (String, f64, f64) {
    let (body, width, height) = picture(graph, TITLE);
    let title_width = MARGIN * 2.0 + length(&graph.subtitle).max(length(&graph.title) * 1.5);
    let title = text(MARGIN, 28.0, " font-size=\"18\" font-weight=\"bold\"", &graph.title);
    let subtitle = text(MARGIN, 48.0, " class=\"subtitle\" fill=\"#555555\"", &graph.subtitle);
    (title + &subtitle + &body, width.max(title_width), height)
}

fn text(x: f64, y: f64, attributes: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\"{attributes}>{}</text>\n", escaped(text))
}

/// The boxes and arrows of a graph, `top` pixels below its upper edge: elements, width, height.
fn picture(graph: &Graph, top: f64) -> (String, f64, f64) {
    let nodes: Vec<Node> = graph.nodes.iter().map(broken).collect();
    let (places, width, height) = arranged(&nodes, top);
    let mut out = String::new();
    let mut labels = String::new();
    for edge in &graph.edges {
        let (from, to) = (places[edge.from], places[edge.to]);
        let (x1, y1) = (from.x + from.width, from.y + from.height / 2.0);
        let (x2, y2) = (to.x - 8.0, to.y + to.height / 2.0);
        let middle = (x1 + x2) / 2.0;
        let stroke = 1.0 + 4.0 * edge.share;
        let _ = writeln!(
            out,
            "<path d=\"M{x1:.1} {y1:.1} C{middle:.1} {y1:.1} {middle:.1} {y2:.1} {x2:.1} {y2:.1}\" class=\"edge\" fill=\"none\" \
             stroke=\"#8aa4c0\" stroke-width=\"{stroke:.1}\"/>\
             <path class=\"arrow\" d=\"M{x2:.1} {:.1} l8 5 l-8 5 z\" fill=\"#8aa4c0\"/>",
            y2 - 5.0
        );
        if edge.label.is_empty() {
            continue;
        }
        // Labels are near the end where arrows are apart: many start or end at one box.
        let fans_out = graph.edges.iter().filter(|other| other.from == edge.from).count() > 1;
        let (x, y, anchor) = if fans_out { (x2 - 6.0, y2, "end") } else { (x1 + 6.0, y1, "start") };
        let halo = "class=\"halo\" paint-order=\"stroke\" stroke=\"#ffffff\" stroke-width=\"4\"";
        labels += &text(x, y - 5.0, &format!(" text-anchor=\"{anchor}\" font-size=\"11\" {halo}"), &edge.label);
    }
    for (node, place) in nodes.iter().zip(&places) {
        out += &boxed(node, *place);
    }
    out += &labels;
    (out, width, height)
}

fn boxed(node: &Node, place: Rectangle) -> String {
    let (class, fill, stroke, more) = match node.kind {
        Kind::Address => ("address", "#e8f0fa", "#4878a8", ""),
        Kind::Choice => ("choice", "#fff6dd", "#c09a30", ""),
        Kind::Endpoint => ("endpoint", "#e3f3e4", "#4c9455", ""),
        Kind::Unused => ("unused", "#fafafa", "#999999", " stroke-dasharray=\"5 4\""),
        Kind::Refused => ("refused", "#fbe4e4", "#c05050", ""),
    };
    let Rectangle { x, y, width, height } = place;
    let round = if node.kind == Kind::Choice { 14 } else { 5 };
    let mut out = format!(
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"{round}\" fill=\"{fill}\" \
         stroke=\"{stroke}\" stroke-width=\"1.5\"{more}/>\n"
    );
    for (number, line) in node.lines.iter().enumerate() {
        #[allow(clippy::cast_precision_loss)] // a few lines
        let y = y + PADDING + 11.0 + LINE * number as f64;
        let style = if number == 0 { " font-weight=\"bold\"" } else { " class=\"detail\" fill=\"#444444\"" };
        let _ = writeln!(out, "<text x=\"{:.1}\" y=\"{y:.1}\"{style}>{}</text>", x + PADDING, escaped(line));
    }
    out
}

/// The boxes' rectangles, the width and the height of all; the first box begins `top` pixels below the edge.
fn arranged(nodes: &[Node], top: f64) -> (Vec<Rectangle>, f64, f64) {
    let mut places = vec![Rectangle { x: 0.0, y: 0.0, width: 0.0, height: 0.0 }; nodes.len()];
    let columns: [Vec<usize>; 3] =
        std::array::from_fn(|column| (0..nodes.len()).filter(|at| column_of(nodes[*at].kind) == column).collect());
    #[allow(clippy::cast_precision_loss)] // a few lines
    let height = |at: &usize| nodes[*at].lines.len() as f64 * LINE + PADDING * 2.0 - 4.0;
    let total =
        |column: &Vec<usize>| column.iter().map(height).sum::<f64>() + GAP * column.len().saturating_sub(1) as f64;
    let tallest = columns.iter().map(total).fold(40.0, f64::max);
    let mut x = MARGIN;
    for column in columns.iter().filter(|column| !column.is_empty()) {
        let widest = column.iter().flat_map(|at| &nodes[*at].lines).map(|line| length(line)).fold(60.0, f64::max);
        let width = widest + PADDING * 2.0;
        let mut y = top + (tallest - total(column)) / 2.0;
        for at in column {
            places[*at] = Rectangle { x, y, width, height: height(at) };
            y += height(at) + GAP;
        }
        x += width + BETWEEN;
    }
    (places, (x - BETWEEN + MARGIN).max(MARGIN * 2.0), top + tallest + MARGIN)
}

fn column_of(kind: Kind) -> usize {
    match kind {
        Kind::Address => 0,
        Kind::Choice | Kind::Refused => 1,
        Kind::Endpoint | Kind::Unused => 2,
    }
}

fn broken(node: &Node) -> Node {
    let lines = node.lines.iter().flat_map(|line| crate::terminal::wrapped(line, LONGEST)).collect();
    Node { kind: node.kind, lines }
}

#[allow(clippy::cast_precision_loss)] // a line's length
fn length(text: &str) -> f64 {
    text.chars().count() as f64 * CHARACTER
}

/// Text as it may stand in an element or a quoted attribute of SVG or HTML.
#[must_use]
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
