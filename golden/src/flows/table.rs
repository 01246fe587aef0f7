//! In: a flow table's file. Out: its flows, one sender and one destination each.
//! Must not know where packets really go.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Deserialize;

use super::spelling::{self, Expected};
use proxier_inspect::walk::Packet;

/// What is promised about the connections of one case.
#[derive(Clone, Debug)]
pub struct FlowTable {
    /// In the order of the file.
    pub flows: Vec<Flow>,
}

/// What is promised about one connection.
#[derive(Clone, Debug)]
pub struct Flow {
    /// The sender as the table names it.
    pub from: String,
    /// The destination as the table names it.
    pub to: String,
    /// The connection's packet.
    pub packet: Packet,
    /// The endpoint this sender was sent to before, and how many seconds ago.
    pub remembers: Option<(SocketAddr, u32)>,
    /// Where it ends.
    pub expect: Vec<Expected>,
    /// Where it ends in the modes that differ.
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
    /// Reads the case's table, and those it is `like`.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn load(case: &str) -> Result<Self, String> {
        let path = super::folder().join(format!("{case}.yaml"));
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Reads a table's text.
    ///
    /// # Errors
    /// What is wrong with it.
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
