//! The language of iptables rules: the table of all matches and targets against the code and the installed package, and
//! generated rules against the kernel, with real packets.

#![allow(clippy::unwrap_used)]

mod packets;

use std::collections::BTreeMap;
use std::path::Path;

use netfilter::IpFamily;
use proxier_inspect::rules::language::{Extension, Support, match_of, target_of};
use proxier_inspect::rules::{Meaning, Ruleset, Target, Test};

/// A line of the table.
struct ExtensionRow {
    is_match: bool,
    name: String,
    families: Vec<IpFamily>,
    support: Support,
    why: String,
    rule: String,
}

fn table() -> Vec<ExtensionRow> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("iptables/extensions.tsv");
    let text = std::fs::read_to_string(path).unwrap();
    let line = |line: &str| {
        let [kind, name, families, support, why, rule] = line.split('\t').collect::<Vec<_>>()[..] else {
            panic!("six fields: {line}")
        };
        ExtensionRow {
            is_match: kind == "match",
            name: name.to_owned(),
            families: IpFamily::ALL.into_iter().filter(|of| families == "both" || families == of.name()).collect(),
            support: match support {
                "understood" => Support::Exact,
                "assumed" => Support::Assumed,
                "doubt" => Support::Doubt,
                other => panic!("{other}"),
            },
            why: why.trim_start_matches('-').to_owned(),
            rule: rule.to_owned(),
        }
    };
    text.lines().filter(|text| !text.starts_with('#')).map(line).collect()
}

fn extension(line: &ExtensionRow) -> Option<&'static Extension> {
    if line.is_match { match_of(&line.name) } else { target_of(&line.name) }
}

fn read(family: IpFamily, rule: &str) -> Meaning {
    let [from, to, net] = match family {
        IpFamily::V4 => ["10.9.0.1", "10.9.0.2", "10.9.0.0/24"],
        IpFamily::V6 => ["fd00::1", "fd00::2", "fd00::/64"],
    };
    let rule = rule.replace("{from}", from).replace("{to}", to).replace("{net}", net);
    let mut ruleset = Ruleset::new(family);
    assert_eq!(ruleset.read(&format!("*mangle\n-A FORWARD {rule}\nCOMMIT\n")), []);
    ruleset.chain("mangle", "FORWARD").unwrap().rules[0].read(family)
}

#[test]
fn each_line_of_the_table_is_what_the_code_does() {
    let mut right = 0;
    for line in table() {
        let known = extension(&line).unwrap_or_else(|| panic!("{} is not known", line.name));
        assert_eq!((known.support, known.why), (line.support, &*line.why), "{}", line.name);
        for family in &line.families {
            let meaning = read(*family, &line.rule);
            let assumes = meaning.conditions.iter().any(|condition| {
                matches!(condition.test, Test::Assumed { .. } | Test::Limited { .. } | Test::Quota { .. })
            });
            match (line.support, &meaning.problem) {
                (Support::Doubt, Some(problem)) => {
                    assert_eq!(*problem, format!("{}: {}", line.name, line.why), "{}", line.rule);
                }
                // Decided by whether a program listens, which the walk sees.
                (Support::Doubt, None) => {
                    assert!(matches!(meaning.target, Some(Target::Queue { .. })), "{}", line.rule)
                }
                (Support::Exact, problem) => assert!(problem.is_none() && !assumes || line.name == "ah", "{meaning:?}"),
                (Support::Assumed, problem) => assert_eq!(*problem, None, "{}", line.rule),
            }
            right += 1;
        }
    }
    assert!(right >= 170, "only {right} extensions in both families");
}

/// The shared objects of the package say which extensions there are; two are not extensions of their own.
#[test]
fn no_extension_of_the_installed_package_is_missing() {
    let mut known: BTreeMap<String, Vec<IpFamily>> = BTreeMap::new();
    for line in table() {
        known.entry(line.name.clone()).or_default().extend(&line.families);
    }
    let folders = ["/usr/lib/x86_64-linux-gnu/xtables", "/usr/lib/aarch64-linux-gnu/xtables", "/usr/lib/xtables"];
    let folder = folders.iter().find(|folder| Path::new(folder).is_dir()).expect("iptables' extensions");
    let mut seen = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let file = entry.unwrap().file_name().to_string_lossy().into_owned();
        let Some((kind, name)) = file.strip_suffix(".so").and_then(|file| file.split_once('_')) else { continue };
        let families: &[IpFamily] = match kind {
            "libxt" => &IpFamily::ALL,
            "libipt" => &[IpFamily::V4],
            "libip6t" => &[IpFamily::V6],
            _ => continue,
        };
        if ["standard", "NAT"].contains(&name) {
            continue;
        }
        let listed = known.get(name).unwrap_or_else(|| panic!("{file} is not in the table"));
        // A few of both families' objects are only of use in one.
        assert!(families.iter().any(|family| listed.contains(family)), "{file}");
        seen += 1;
    }
    assert!(seen > 90, "{seen}");
}
