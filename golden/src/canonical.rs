//! The canonical form in which kernel states are compared.
//!
//! It omits counters and everything else that varies by chance, such as the rule order of KUBE-IPVS-OUT-FILTER.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;

/// Chains whose rules have distinct destinations, so that kube-proxy's random order does not matter.
const UNORDERED: [&str; 5] =
    ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-EXTERNAL-SERVICES", "KUBE-PROXY-FIREWALL", "KUBE-IPVS-OUT-FILTER"];

/// The canonical form of HTTP answers: without dates, lengths and reason phrases.
#[must_use]
pub fn http(text: &str) -> String {
    let kept =
        text.split_inclusive('\n').filter(|line| !line.starts_with("Content-Length:") && !line.starts_with("Date:"));
    kept.map(|line| match line.strip_prefix("HTTP/1.1 ") {
        Some(status) => format!("HTTP/1.1 {}\n", status.split_whitespace().next().unwrap_or_default()),
        None => line.to_owned(),
    })
    .collect()
}

/// The canonical form of `iptables-save` output.
///
/// Without counters and comment lines, with sorted chains and with rules in order, except where the order has no
/// effect.
#[must_use]
pub fn save(text: &str) -> String {
    static COUNTERS: LazyLock<Regex> = LazyLock::new(|| regex(r"\[[0-9]+:[0-9]+\][[:space:]]*"));
    let mut out = Vec::new();
    let mut table = Table::default();
    for line in text.lines() {
        let line = COUNTERS.replace_all(line, "");
        let line = line.trim_end();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with('*') {
            table = Table { name: line.to_owned(), ..Table::default() };
        } else if let Some(chain) = line.strip_prefix(':') {
            let words: Vec<&str> = chain.split_whitespace().take(2).collect();
            table.chains.push(words.join(" "));
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let chain = rule.split_whitespace().next().unwrap_or_default();
            table.rules.entry(chain.to_owned()).or_default().push(line.to_owned());
        } else if line == "COMMIT" {
            table.write(&mut out);
        }
    }
    joined(&out)
}

/// The canonical form of unordered lines: sorted, without blank ones.
#[must_use]
pub fn lines(text: &str) -> String {
    let mut out: Vec<String> = text.lines().map(|l| l.trim_end().to_owned()).filter(|l| !l.is_empty()).collect();
    out.sort_unstable();
    joined(&out)
}

/// The canonical form of `ipset save` output: sorted, without values that the kernel chooses.
#[must_use]
pub fn sets(text: &str) -> String {
    static CHOSEN: LazyLock<Regex> = LazyLock::new(|| regex(r" (bucketsize [0-9]+|initval 0x[0-9a-f]+)"));
    lines(&CHOSEN.replace_all(text, ""))
}

/// A table, from its `*name` line to its COMMIT.
#[derive(Clone, Default)]
struct Table {
    name: String,
    chains: Vec<String>,
    rules: BTreeMap<String, Vec<String>>,
}

impl Table {
    fn write(&self, out: &mut Vec<String>) {
        // A table without rules and user-defined chains is omitted.
        if self.rules.is_empty() && !self.chains.iter().any(|c| c.starts_with("KUBE-")) {
            return;
        }
        out.push(self.name.clone());
        let mut chains = self.chains.clone();
        chains.sort_unstable();
        out.extend(chains.iter().map(|c| format!(":{c}")));
        for (chain, rules) in &self.rules {
            if UNORDERED.contains(&chain.as_str()) {
                out.extend(by_destination(chain, rules));
            } else {
                out.extend(rules.iter().cloned());
            }
        }
        out.push("COMMIT".to_owned());
    }
}

/// The rules grouped by destination, with sorted groups and the chain's last rule last.
fn by_destination(chain: &str, rules: &[String]) -> Vec<String> {
    let (tail, head): (Vec<String>, Vec<String>) =
        rules.iter().cloned().partition(|r| r.contains("must be the last rule"));
    let mut groups: BTreeMap<[String; 3], Vec<String>> = BTreeMap::new();
    for rule in head {
        groups.entry(destination(chain, &rule)).or_default().push(rule);
    }
    let mut out = Vec::new();
    for mut group in groups.into_values() {
        // Rules for one destination keep their order, unless they differ only in the comment.
        let first = without_comment(&group[0]);
        if group.iter().all(|r| without_comment(r) == first) {
            group.sort_unstable();
        }
        out.extend(group);
    }
    out.extend(tail);
    out
}

/// The destination, protocol and port that a rule matches, or those of its virtual server.
///
/// A node port has no destination: its rule for localhost must stay before the general one.
fn destination(chain: &str, rule: &str) -> [String; 3] {
    static ADDRESS: LazyLock<Regex> = LazyLock::new(|| regex(r"-d ([^[:space:]]+)"));
    static PROTOCOL: LazyLock<Regex> = LazyLock::new(|| regex(r"-p ([^[:space:]]+)"));
    static PORT: LazyLock<Regex> = LazyLock::new(|| regex(r"--dport ([0-9]+)"));
    static SERVER: LazyLock<Regex> =
        LazyLock::new(|| regex(r"--vproto ([0-9]+) --vaddr ([^[:space:]]+) --vport ([0-9]+)"));
    if let Some(server) = SERVER.captures(rule) {
        return [2, 1, 3].map(|part| server[part].to_owned());
    }
    let find = |re: &Regex| re.captures(rule).map(|c| c[1].to_owned()).unwrap_or_default();
    let address = if chain == "KUBE-NODEPORTS" { String::new() } else { find(&ADDRESS) };
    [address, find(&PROTOCOL), find(&PORT)]
}

fn without_comment(rule: &str) -> String {
    static COMMENT: LazyLock<Regex> = LazyLock::new(|| regex(r#"-m comment --comment (".*?"|[^[:space:]]+) "#));
    COMMENT.replace_all(rule, "").into_owned()
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("a valid pattern")
}

fn joined(lines: &[String]) -> String {
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_keeps_what_the_proxy_chooses_to_say() {
        let text = "listen [::]:32001\n--- 32001\nHTTP/1.1 503 Service Unavailable\nX-A: 1\nDate: now\nContent-Length: 2\n\n{\n}\n";
        assert_eq!(http(text), "listen [::]:32001\n--- 32001\nHTTP/1.1 503\nX-A: 1\n\n{\n}\n");
        assert_eq!(http("listen \n"), "listen \n");
    }

    #[test]
    fn counters_comments_and_bare_tables_go() {
        let text = "# made by x\n*raw\n:OUTPUT ACCEPT [3:4]\nCOMMIT\n*nat\n:OUTPUT ACCEPT [1:2]\n:KUBE-B - [0:0]\n\
                    :KUBE-A - [0:0]\n[5:6] -A KUBE-B -j RETURN\n[7:8] -A KUBE-A -j RETURN\nCOMMIT\n# end\n";
        let want = "*nat\n:KUBE-A -\n:KUBE-B -\n:OUTPUT ACCEPT\n-A KUBE-A -j RETURN\n-A KUBE-B -j RETURN\nCOMMIT\n";
        assert_eq!(save(text), want);
        assert_eq!(save(""), "\n");
    }

    #[test]
    fn order_matters_in_ordinary_chains_only() {
        let of = |chain: &str, rules: [&str; 2]| {
            save(&format!("*nat\n:{chain} - [0:0]\n-A {chain} {}\n-A {chain} {}\nCOMMIT\n", rules[0], rules[1]))
        };
        let (a, b) = ("-d 10.0.0.1/32 -p tcp -m tcp --dport 80 -j A", "-d 10.0.0.2/32 -p tcp -m tcp --dport 80 -j B");
        assert_eq!(of("KUBE-SERVICES", [a, b]), of("KUBE-SERVICES", [b, a]));
        assert_ne!(of("KUBE-SVC-X", [a, b]), of("KUBE-SVC-X", [b, a]));
    }

    #[test]
    fn rules_of_one_destination_keep_their_order() {
        let of = |rules: [&str; 2]| {
            let [a, b] = rules;
            save(&format!("*nat\n:KUBE-NODEPORTS - [0:0]\n-A KUBE-NODEPORTS {a}\n-A KUBE-NODEPORTS {b}\nCOMMIT\n"))
        };
        let (local, general) = ("-d 127.0.0.0/8 -p tcp --dport 3 -j X", "-p tcp --dport 3 -j Y");
        assert_ne!(of([local, general]), of([general, local]));
        let (one, two) = (r#"-p tcp -m comment --comment "a b" -j X"#, r"-p tcp -m comment --comment c -j X");
        assert_eq!(of([one, two]), of([two, one]));
    }

    #[test]
    fn the_last_rule_stays_last() {
        let last = r#"-A KUBE-SERVICES -m comment --comment "NOTE: this must be the last rule in this chain" -j N"#;
        let other = "-A KUBE-SERVICES -d 10.0.0.1/32 -j A";
        let form = save(&format!("*nat\n:KUBE-SERVICES - [0:0]\n{last}\n{other}\nCOMMIT\n"));
        assert_eq!(form, format!("*nat\n:KUBE-SERVICES -\n{other}\n{last}\nCOMMIT\n"));
    }

    #[test]
    fn lines_are_sorted() {
        assert_eq!(lines("b = 1  \n\na = 0\n"), "a = 0\nb = 1\n");
    }
}
