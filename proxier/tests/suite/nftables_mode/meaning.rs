//! Normalizes nft listings: equal lines mean that packets are treated equally.

/// The table without the numbers of endpoints, and without chains and sets that are there only for a number.
pub fn meaning(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let mut block: Vec<String> = Vec::new();
    for line in text.lines() {
        let line = line.trim().trim_start_matches("elements = { ").trim_end_matches([' ', '}', ',']);
        if line.ends_with('{') {
            lines.append(&mut block);
            block.push(line.to_owned());
        } else {
            // Short elements share lines.
            block.extend(line.split(", ").map(unnumbered).filter(|line| !line.is_empty()));
            // Elements are in no order; so are rules here, on both sides.
            block[1..].sort();
        }
    }
    lines.append(&mut block);
    let mut skipping = false;
    lines.retain(|line| {
        if line.ends_with('{') {
            let starts = ["chain stick-", "set clients-"];
            skipping = starts.iter().any(|start| line.starts_with(start)) || line.contains("sticky");
        }
        !skipping
    });
    lines.sort();
    lines
}

/// `10.96.0.1 . tcp . 80 . 3 : …` without the 3, and `…-sticky-3-1s` without either number.
fn unnumbered(line: &str) -> String {
    let (key, value) = line.split_once(" : ").unwrap_or((line, ""));
    let is_numbered = value.contains(" . ") || value.starts_with("goto stick-");
    let key = if is_numbered { key.rsplit_once(" . ").map_or(key, |(key, _)| key) } else { key };
    let value = match value.split_once("-sticky-") {
        Some((before, _)) => format!("{before}-sticky"),
        None if value.starts_with("goto stick-") => "goto stick".to_owned(),
        None => value.to_owned(),
    };
    format!("{key} {value}").trim().to_owned()
}

/// The lines, sorted.
pub fn sorted(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// Both mean the same.
pub fn compare(incremental: &str, fresh: &str, when: &str) {
    let (incremental, fresh) = (meaning(incremental), meaning(fresh));
    let [only, missing] = [(&incremental, &fresh), (&fresh, &incremental)]
        .map(|(a, b)| a.iter().filter(|line| !b.contains(line)).collect::<Vec<_>>());
    assert!(incremental == fresh, "{when}, a fresh start does not make {only:#?}\nbut {missing:#?}");
}
