//! Reads flow tables, and expands them to one sender and destination each.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Deserialize;

use super::spelling::{self, Expected};
use proxier_inspect::walk::Packet;

/// The promised outcomes of connections in one case.
#[derive(Clone, Debug)]
pub struct FlowTable {
    /// The flows in the order of the file.
    pub flows: Vec<Flow>,
}

/// The promised outcome of one connection.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The sender, as spelled in the table.
    pub from: String,
    /// The destination, as spelled in the table.
    pub to: String,
    /// The packet.
    pub packet: Packet,
    /// The sender's affinity: an endpoint, and how many seconds ago it was chosen.
    pub remembers: Option<(SocketAddr, u32)>,
    /// The expected outcomes.
    pub expect: Vec<Expected>,
    /// The expected outcomes in modes that differ.
    pub modes: BTreeMap<String, Vec<Expected>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    like: Option<String>,
    flows: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    from: Words,
    to: Words,
    expect: Words,
    #[serde(default)]
    modes: BTreeMap<String, Words>,
    state: Option<String>,
    remembers: Option<String>,
    ago: Option<u32>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Words {
    One(String),
    Several(Vec<String>),
}

impl Words {
    fn list(&self) -> &[String] {
        match self {
            Self::One(word) => std::slice::from_ref(word),
            Self::Several(words) => words,
        }
    }

    fn expected(&self) -> Result<Vec<Expected>, String> {
        let mut expected = self.list().iter().map(|word| spelling::expected(word)).collect::<Result<Vec<_>, _>>()?;
        expected.sort();
        if expected.is_empty() {
            return Err("a flow that ends nowhere".to_owned());
        }
        Ok(expected)
    }
}

impl FlowTable {
    /// Reads the table of a case and the tables that it is `like`.
    ///
    /// # Errors
    /// An invalid file.
    pub fn load(case: &str) -> Result<Self, String> {
        let path = super::folder().join(format!("{case}.yaml"));
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Parses a table.
    ///
    /// # Errors
    /// An invalid table.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let mut flows = Vec::new();
        for entry in &file.flows {
            for from in entry.from.list() {
                for to in entry.to.list() {
                    let flow = entry.flow(from, to).map_err(|error| format!("{from} -> {to}: {error}"))?;
                    if flows.iter().any(|other: &Flow| other.same_question(&flow)) {
                        return Err(format!("{from} -> {to} stands here twice"));
                    }
                    flows.push(flow);
                }
            }
        }
        if let Some(like) = &file.like {
            let mut inherited = Self::load(like)?.flows;
            inherited.retain(|other| !flows.iter().any(|flow| flow.same_question(other)));
            flows.extend(inherited);
        }
        Ok(Self { flows })
    }
}

impl Entry {
    fn flow(&self, from: &str, to: &str) -> Result<Flow, String> {
        let remembers = match (&self.remembers, self.ago) {
            (Some(endpoint), ago) => Some((spelling::address(endpoint)?, ago.unwrap_or(0))),
            (None, None) => None,
            (None, Some(_)) => return Err("ago without remembers".to_owned()),
        };
        let mut modes = BTreeMap::new();
        for (mode, words) in &self.modes {
            modes.insert(mode.clone(), words.expected()?);
        }
        Ok(Flow {
            from: from.to_owned(),
            to: to.to_owned(),
            packet: spelling::packet(from, to, self.state.as_deref())?,
            remembers,
            expect: self.expect.expected()?,
            modes,
        })
    }
}

impl Flow {
    fn same_question(&self, other: &Self) -> bool {
        (&self.packet, self.remembers) == (&other.packet, other.remembers)
    }
}
