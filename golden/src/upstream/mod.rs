//! The nf_tables transactions of the real kube-proxy's nftables mode, reproduced from a recorded table.
//!
//! The input of `nft -f` of upstream 1.36: the first sync of a process, later syncs, and the deletion of stale
//! objects.

mod release;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use serde_json::Value;

pub use self::release::before_1_33;
pub use self::table::{ListedChain, ListedSet, ListedTable};

/// The sets and maps whose elements upstream reads at its first sync and then caches.
const TRACKED: [&str; 7] = [
    "cluster-ips",
    "service-ips",
    "firewall-ips",
    "no-endpoint-services",
    "no-endpoint-nodeports",
    "service-nodeports",
    "hairpin-connections",
];
const NODE_PORT_IPS: &str = "nodeport-ips";

/// Runs nft with arguments and input and returns its output.
pub type Nft<'a> = &'a dyn Fn(&[&str], &str) -> Result<String, String>;

/// A kube-proxy process in nftables mode, for one family.
#[derive(Debug, Default)]
pub struct Upstream {
    /// The cached elements; `None` before the first sync.
    elements: Option<BTreeMap<String, BTreeMap<String, String>>>,
    stale: BTreeSet<String>,
}

/// A transaction in knftables' format.
struct Writer {
    table: String,
    text: String,
}

impl Writer {
    fn new(table: &ListedTable) -> Self {
        Self { table: format!("{} {}", table.family, table.name), text: String::new() }
    }

    /// Appends an `add` or other command with a name and its remaining text.
    fn push(&mut self, verb: &str, name: &str, rest: &str) {
        let separator = if rest.is_empty() { "" } else { " " };
        writeln!(self.text, "{verb} {} {name}{separator}{rest}", self.table).expect("memory");
    }

    fn rules(&mut self, name: &str, chain: &ListedChain) {
        for rule in &chain.rules {
            self.push("add rule", name, rule);
        }
    }

    fn ensure_chain(&mut self, name: &str, chain: &ListedChain) {
        let base = chain.base.as_deref().and_then(|base| base.split(';').next());
        let parts: Vec<String> =
            base.into_iter().chain(chain.comment.as_deref()).map(|part| format!("{part} ;")).collect();
        self.push(
            "add chain",
            name,
            &if parts.is_empty() { String::new() } else { format!("{{ {} }}", parts.join(" ")) },
        );
        self.push("flush chain", name, "");
    }

    fn add_set(&mut self, name: &str, set: &ListedSet) {
        // nft lists the kernel's default, which upstream did not request.
        let lines = set.definition.iter().filter(|line| !line.starts_with("size "));
        let lines: String = lines.map(|line| format!(" {line} ;")).collect();
        self.push(&format!("add {}", set.word), name, &format!("{{{lines} }}"));
    }

    fn add_element(&mut self, name: &str, key: &str, comment: Option<&str>, value: &str) {
        let comment = comment.map(|text| format!(" comment {text}")).unwrap_or_default();
        let value = if value.is_empty() { String::new() } else { format!(" : {value}") };
        self.push("add element", name, &format!("{{ {key}{comment}{value} }}"));
    }
}

impl Upstream {
    /// Writes the table as a sync does.
    ///
    /// # Errors
    /// nft's error, after the transaction.
    pub fn sync(&mut self, wanted: &ListedTable, nft: Nft<'_>) -> Result<(), String> {
        self.delete_stale(wanted, nft)?;
        let mut writer = Writer::new(wanted);
        let first = self.elements.is_none();
        if first {
            set_up(&mut writer, wanted);
        }
        let mut elements = match self.elements.take() {
            Some(elements) => elements,
            None => TRACKED.iter().map(|name| ((*name).to_owned(), listed(wanted, name, nft))).collect(),
        };
        let (chains, sets) = existing(wanted, nft)?;
        let of_services = || wanted.chains.iter().filter(|(name, _)| name.contains('/'));
        of_services().for_each(|(name, chain)| writer.ensure_chain(name, chain));
        let affinity = wanted.sets.iter().filter(|(name, _)| name.starts_with("affinity-"));
        affinity.for_each(|(name, set)| writer.add_set(name, set));
        for name in TRACKED {
            ensure_elements(&mut writer, wanted, name, elements.entry(name.to_owned()).or_default());
        }
        of_services().for_each(|(name, chain)| writer.rules(name, chain));
        for name in chains.iter().filter(|name| name.contains('/') && !wanted.chains.contains_key(*name)) {
            writer.push("flush chain", name, "");
            self.stale.insert(name.clone());
        }
        for name in sets.iter().filter(|name| name.starts_with("affinity-") && !wanted.sets.contains_key(*name)) {
            writer.push("delete set", name, "");
        }
        for name in TRACKED {
            delete_leftover(&mut writer, wanted, name, elements.entry(name.to_owned()).or_default());
        }
        run(&writer.text, nft)?;
        self.elements = Some(elements);
        Ok(())
    }

    /// Deletes stale objects, as upstream does a second later before its next sync.
    ///
    /// # Errors
    /// nft's error.
    pub fn delete_stale(&mut self, table: &ListedTable, nft: Nft<'_>) -> Result<(), String> {
        let mut writer = Writer::new(table);
        let stale = std::mem::take(&mut self.stale);
        stale.iter().filter(|name| !table.chains.contains_key(*name)).for_each(|name| {
            writer.push("delete chain", name, "");
        });
        run(&writer.text, nft)
    }
}

fn run(text: &str, nft: Nft<'_>) -> Result<(), String> {
    nft(&["-f", "-"], text).map(drop).map_err(|error| format!("{text}\n{error}"))
}

/// Writes the table, its recreated base chains, and its fixed chains and sets.
fn set_up(writer: &mut Writer, wanted: &ListedTable) {
    let comment = wanted.comment.as_deref().map(|text| format!("{{ {text} ; }}")).unwrap_or_default();
    writeln!(writer.text, "add table {} {comment}", writer.table).expect("memory");
    let bases = || wanted.chains.iter().filter(|(_, chain)| chain.base.is_some());
    for (name, _) in bases() {
        writer.push("add chain", name, "");
        writer.push("delete chain", name, "");
    }
    let fixed = || wanted.chains.iter().filter(|(name, chain)| chain.base.is_none() && !name.contains('/'));
    bases().chain(fixed()).for_each(|(name, chain)| writer.ensure_chain(name, chain));
    let sets = wanted.sets.iter().filter(|(name, _)| !name.starts_with("affinity-") && *name != NODE_PORT_IPS);
    sets.for_each(|(name, set)| writer.add_set(name, set));
    node_port_ips(writer, wanted);
    bases().chain(fixed()).for_each(|(name, chain)| writer.rules(name, chain));
}

/// Where node ports accept all addresses, the set is created in order to be deleted.
fn node_port_ips(writer: &mut Writer, wanted: &ListedTable) {
    let Some(set) = wanted.sets.get(NODE_PORT_IPS) else {
        let address = if wanted.family == "ip" { "ipv4_addr" } else { "ipv6_addr" };
        writer.push("add set", NODE_PORT_IPS, &format!("{{ type {address} ; }}"));
        writer.push("delete set", NODE_PORT_IPS, "");
        return;
    };
    writer.add_set(NODE_PORT_IPS, set);
    writer.push("flush set", NODE_PORT_IPS, "");
    set.elements.keys().for_each(|key| writer.add_element(NODE_PORT_IPS, key, None, ""));
}

fn ensure_elements(writer: &mut Writer, wanted: &ListedTable, name: &str, held: &mut BTreeMap<String, String>) {
    let Some(set) = wanted.sets.get(name) else { return };
    for (key, (comment, value)) in &set.elements {
        let value = value.clone().unwrap_or_default();
        match held.get(key) {
            Some(known) if *known == value => continue,
            Some(_) => writer.push("delete element", name, &format!("{{ {key} }}")),
            None => {}
        }
        writer.add_element(name, key, comment.as_deref(), &value);
        held.insert(key.clone(), value);
    }
}

fn delete_leftover(writer: &mut Writer, wanted: &ListedTable, name: &str, held: &mut BTreeMap<String, String>) {
    let Some(set) = wanted.sets.get(name) else { return };
    held.retain(|key, _| {
        let is_wanted = set.elements.contains_key(key);
        if !is_wanted {
            writer.push("delete element", name, &format!("{{ {key} }}"));
        }
        is_wanted
    });
}

/// The chains and sets in the kernel, without maps.
///
/// # Errors
/// If nft's output cannot be parsed. A missing table is not an error.
fn existing(table: &ListedTable, nft: Nft<'_>) -> Result<(Vec<String>, Vec<String>), String> {
    let list = ["--json", "--terse", "list", "table", &table.family, &table.name];
    let text = match nft(&list, "") {
        Err(error) if error.contains("No such file or directory") => return Ok(Default::default()),
        text => text?,
    };
    let list: Value = serde_json::from_str(&text).map_err(|error| format!("{error} in {text}"))?;
    let objects = list["nftables"].as_array().cloned().unwrap_or_default();
    let named = |kind: &str| {
        let names = objects.iter().filter_map(|object| object[kind]["name"].as_str());
        names.map(str::to_owned).collect()
    };
    Ok((named("chain"), named("set")))
}

/// The elements of a set or map in the kernel, values by key; empty if they cannot be listed.
fn listed(table: &ListedTable, name: &str, nft: Nft<'_>) -> BTreeMap<String, String> {
    let Some(word) = table.sets.get(name).map(|set| set.word.as_str()) else { return BTreeMap::new() };
    let Ok(text) = nft(&["--json", "list", word, &table.family, &table.name, name], "") else { return BTreeMap::new() };
    let list: Value = serde_json::from_str(&text).expect("nft prints JSON");
    let objects = list["nftables"].as_array().cloned().unwrap_or_default();
    let elements = objects.iter().filter_map(|object| object[word]["elem"].as_array()).flatten();
    let element = |element: &Value| match element.as_array() {
        Some(pair) if word == "map" => (spelled(&pair[0]), spelled(&pair[1])),
        _ => (spelled(element), String::new()),
    };
    elements.map(element).collect()
}

/// A key or value of nft's JSON in nft syntax.
fn spelled(value: &Value) -> String {
    if let Some(inner) = value.pointer("/elem/val") {
        return spelled(inner);
    }
    if let Some(fields) = value["concat"].as_array() {
        return fields.iter().map(spelled).collect::<Vec<_>>().join(" . ");
    }
    match value {
        Value::String(text) => text.clone(),
        Value::Object(verdict) => {
            let of = |(word, to): (&String, &Value)| match to["target"].as_str() {
                Some(target) => format!("{word} {target}"),
                None => word.clone(),
            };
            verdict.iter().next().map(of).unwrap_or_default()
        }
        other => other.to_string(),
    }
}
