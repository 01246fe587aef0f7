//! nf_tables in the running kernel.

use std::collections::BTreeMap;

use netlink_sys::protocols::NETLINK_NETFILTER;

use super::decode::{self, ReadTable};
use super::encode::*;
use super::uapi::*;
use super::{ChainState, NftError, NftTables, Refusal, chain_state};
use crate::IpFamily;
use crate::kernel::netlink::{
    self, Attributes, Dump, Fault, NFGENMSG_LENGTH, Netlink, NetlinkError, Received, Request, nfgenmsg, nfnetlink,
};
use crate::nft::{Bytes, Element, Name, Operation, Set, Table, Transaction};

/// The largest batch, where the kernel permits it: 10,000 Services with 10 endpoints take 15 MB.
const BATCH_MAX: usize = 64 << 20;

/// The number of elements in one query: each answer is a datagram, and all must fit into the receive buffer.
const ANSWERS: usize = 64;

/// nf_tables in the running kernel.
#[derive(Debug, Default)]
pub struct SystemNftables {
    socket: Option<Netlink>,
    /// The number of batches sent and their bytes.
    sent: (u64, u64),
}

/// The operation of a request, and its first element.
#[derive(Clone, Copy, Debug)]
struct RequestOrigin {
    operation: usize,
    first_element: usize,
}

/// Encoded requests with their operations; the first request begins the batch.
#[derive(Debug, Default)]
struct Batch {
    requests: netlink::Batch,
    origins: Vec<RequestOrigin>,
}

impl Batch {
    /// A batch with its begin message only.
    fn new(generation: Option<u32>) -> Result<Self, NetlinkError> {
        let mut begin = marker(NFNL_MSG_BATCH_BEGIN);
        if let Some(generation) = generation {
            begin.attribute(NFNL_BATCH_GENID, &generation.to_be_bytes());
        }
        let mut batch = Self::default();
        batch.requests.push(&begin)?;
        Ok(batch)
    }

    fn extend(&mut self, table: &Table, start: usize, operations: &[Operation]) -> Result<(), NetlinkError> {
        let mut result = Ok(());
        for (index, operation) in operations.iter().enumerate() {
            let operation_index = start + index;
            let id = u32::try_from(operation_index).unwrap_or(u32::MAX).saturating_add(1);
            requests(table, operation, id, |request, first_element| {
                if result.is_ok() {
                    result = self.requests.push(&request);
                }
                self.origins.push(RequestOrigin { operation: operation_index, first_element });
            });
        }
        result
    }

    /// Splits off the requests from the given index on, as a batch of their own.
    fn split_off(&mut self, request: usize) -> Result<Self, NetlinkError> {
        let mut rest = Self::new(None)?;
        rest.requests.append(&self.requests.split_off(request));
        // The batch-begin message belongs to no operation.
        rest.origins = self.origins.split_off(request - 1);
        Ok(rest)
    }

    fn size(&self) -> usize {
        self.requests.size()
    }
}

impl SystemNftables {
    /// The number of batches sent and their bytes.
    #[must_use]
    pub fn sent(&self) -> (u64, u64) {
        self.sent
    }

    /// The socket, opened at first use. It belongs to the network namespace of the thread that opens it.
    fn socket(&mut self) -> Result<&mut Netlink, NftError> {
        match self.socket.take() {
            Some(socket) => Ok(self.socket.insert(socket)),
            None => Ok(self.socket.insert(Netlink::open(NETLINK_NETFILTER)?)),
        }
    }

    /// The largest possible batch without its end message, for a batch of `bytes`.
    fn room(&mut self, bytes: usize) -> Result<usize, NftError> {
        const END: usize = 64;
        let room = self.socket()?.room((bytes + END).min(BATCH_MAX))?;
        Ok(room.min(BATCH_MAX).saturating_sub(END))
    }

    /// Sends a batch. Without the end message the kernel only validates it.
    fn send(&mut self, transaction: &Transaction, mut batch: Batch, end: bool) -> Result<(), NftError> {
        let last = batch.requests.count() - 1;
        self.sent.0 += 1;
        self.sent.1 += u64::try_from(batch.size()).unwrap_or(u64::MAX);
        if end {
            batch.requests.push(&marker(NFNL_MSG_BATCH_END))?;
        }
        let faults = self.socket()?.batch(std::mem::take(&mut batch.requests), last, &mut |_, _| ());
        let faults = faults.inspect_err(|_| self.socket = None)?;
        if faults.iter().any(|fault| fault.index == 0 && fault.error.errno() == Some(libc::ERESTART)) {
            return Err(NftError::Changed);
        }
        let refusals: Vec<Refusal> = faults.into_iter().map(|fault| refusal(transaction, &batch, fault)).collect();
        if refusals.is_empty() { Ok(()) } else { Err(NftError::Refused(refusals)) }
    }

    fn dump(&mut self, request: &Request, each: &mut dyn FnMut(Attributes<'_>)) -> Result<(), NftError> {
        let mut on_message = |received: &Received<'_>| -> Result<(), NetlinkError> {
            each(received.attributes(NFGENMSG_LENGTH));
            Ok(())
        };
        match self.socket()?.dump(request, &mut on_message) {
            Ok(Dump::Complete) => Ok(()),
            Ok(Dump::Interrupted) => Err(NftError::Interrupted),
            Err(error) => {
                self.socket = None;
                Err(error.into())
            }
        }
    }
}

impl SystemNftables {
    /// Looks up elements, some of which may not exist.
    fn look_up(&mut self, requests: &mut Vec<Request>, each: &mut dyn FnMut(Element)) -> Result<(), NftError> {
        let mut failure = None;
        let mut found =
            |received: &Received<'_>| decode::elements(received.attributes(NFGENMSG_LENGTH)).for_each(&mut *each);
        let answer = self.socket()?.query_all(requests, &mut found, |_, error| {
            failure = failure.take().or(Some(error).filter(|error| error.errno() != Some(libc::ENOENT)));
        });
        answer.and(failure.map_or(Ok(()), Err)).inspect_err(|_| self.socket = None)?;
        requests.clear();
        Ok(())
    }
}

fn marker(kind: u16) -> Request {
    let [_, _, high, low] = nfgenmsg(0);
    Request::new(kind, 0, &[0, 0, high, low | NFNL_SUBSYS_NFTABLES])
}

fn refusal(transaction: &Transaction, batch: &Batch, fault: Fault) -> Refusal {
    let (errno, words) = match fault.error {
        NetlinkError::Refused { errno, words, .. } => (errno, words),
        other => (other.errno().unwrap_or(0), other.to_string()),
    };
    let Some(origin) = fault.index.checked_sub(1).and_then(|index| batch.origins.get(index)) else {
        let object = format!("a batch of {} requests for table {}", batch.origins.len(), transaction.table);
        return Refusal { operation: None, object, errno, words };
    };
    let operation = &transaction.operations()[origin.operation];
    let item = fault.offset.and_then(|offset| item_at(transaction, *origin, offset));
    let object = match (operation, item.map(|item| item + origin.first_element)) {
        (Operation::AddElements(set, elements), Some(at)) if at < elements.len() => {
            Operation::AddElements(set.clone(), vec![elements[at].clone()]).of(&transaction.table).to_string()
        }
        (Operation::DeleteElements(set, elements), Some(at)) if at < elements.len() => {
            Operation::DeleteElements(set.clone(), vec![elements[at].clone()]).of(&transaction.table).to_string()
        }
        _ => shortened(&operation.of(&transaction.table).to_string()),
    };
    Refusal { operation: Some(origin.operation), object, errno, words }
}

/// The index of the element at an offset of a request, which is encoded again: the original was freed after sending.
fn item_at(transaction: &Transaction, origin: RequestOrigin, offset: usize) -> Option<usize> {
    let mut item = None;
    requests(&transaction.table, &transaction.operations()[origin.operation], 0, |request, first_element| {
        if first_element == origin.first_element {
            item = request.item_at(NFGENMSG_LENGTH, NFTA_SET_ELEM_LIST_ELEMENTS, offset);
        }
    });
    item
}

/// Truncates the text of an operation, which may have thousands of elements.
fn shortened(text: &str) -> String {
    const MAX: usize = 300;
    if text.chars().count() <= MAX { text.to_owned() } else { text.chars().take(MAX).chain(['…']).collect() }
}

impl NftTables for SystemNftables {
    fn generation(&mut self) -> Result<u32, NftError> {
        let request = Request::new(nfnetlink(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETGEN), 0, &nfgenmsg(0));
        let mut generation = None;
        let answer = self.socket()?.query(&request, &mut |received| {
            generation = received.attributes(NFGENMSG_LENGTH).be32(NFTA_GEN_ID);
            Ok(())
        });
        answer.inspect_err(|_| self.socket = None)?;
        generation.ok_or(NetlinkError::Malformed.into())
    }

    fn chain_states(&mut self, table: &Table, chains: &[&str]) -> Result<Vec<Option<ChainState>>, NftError> {
        Ok(chain_state::chain_states(&mut self.socket, table, chains)?)
    }

    fn tables(&mut self, family: IpFamily) -> Result<Vec<Name>, NftError> {
        let kind = nfnetlink(NFNL_SUBSYS_NFTABLES, NFT_MSG_GETTABLE);
        let mut names = Vec::new();
        self.dump(&Request::new(kind, 0, &nfgenmsg(family.nfproto())), &mut |attributes| {
            names.extend(attributes.text(TABLE).map(Name::from));
        })?;
        Ok(names)
    }

    fn table(&mut self, table: &Table) -> Result<Option<ReadTable>, NftError> {
        let mut read = None;
        // An interrupted dump is restarted; the table's message resets what was collected.
        self.dump(&unnamed(table, NFT_MSG_GETTABLE), &mut |attributes| {
            if decode::is_of(attributes, &table.name) {
                read = Some(decode::table(attributes));
            }
        })?;
        let Some(mut read) = read else { return Ok(None) };
        self.dump(&unnamed(table, NFT_MSG_GETCHAIN), &mut |attributes| {
            let chain = Some(attributes).filter(|a| decode::is_of(*a, &table.name)).and_then(decode::chain);
            read.chains.extend(chain.map(|chain| (chain.name.clone(), (chain, Vec::new()))));
        })?;
        let mut rules: BTreeMap<Name, Vec<decode::ReadRule>> = BTreeMap::new();
        self.dump(&request(table, NFT_MSG_GETRULE, 0), &mut |attributes| {
            let rule = Some(attributes).filter(|a| decode::is_of(*a, &table.name)).and_then(decode::rule);
            if let Some((chain, rule)) = rule {
                let rules = rules.entry(chain).or_default();
                // The rule was passed before an interruption.
                if rules.iter().all(|known| known.handle != rule.handle) {
                    rules.push(rule);
                }
            }
        })?;
        for (name, rules) in rules {
            // A chain created after the chains were listed is skipped.
            read.chains.entry(name).and_modify(|(_, of_chain)| *of_chain = rules);
        }
        self.dump(&request(table, NFT_MSG_GETSET, 0), &mut |attributes| {
            let set = Some(attributes).filter(|a| decode::is_of(*a, &table.name)).and_then(decode::set);
            read.sets.extend(set);
            read.counts.extend(Some(attributes).filter(|a| decode::is_of(*a, &table.name)).and_then(decode::count));
        })?;
        read.others = read.others.saturating_sub(read.chains.len() + read.sets.len());
        Ok(Some(read))
    }

    fn elements(&mut self, table: &Table, set: &Set, each: &mut dyn FnMut(Element)) -> Result<(), NftError> {
        let mut request = request(table, NFT_MSG_GETSETELEM, 0);
        request.text(NFTA_SET_ELEM_LIST_SET, &set.name);
        self.dump(&request, &mut |attributes| decode::elements(attributes).for_each(&mut *each))
    }

    fn lookup(
        &mut self,
        table: &Table,
        set: &Set,
        lists: &mut dyn Iterator<Item = Vec<Bytes>>,
        each: &mut dyn FnMut(Element),
    ) -> Result<(), NftError> {
        let (mut requests, mut keys, mut lists) = (Vec::new(), 0, lists.peekable());
        while let Some(list) = lists.next() {
            for part in list.chunks(ANSWERS) {
                if keys + part.len() > ANSWERS {
                    self.look_up(&mut requests, each)?;
                    keys = 0;
                }
                requests.push(lookup(table, set, part));
                keys += part.len();
            }
            if lists.peek().is_none() {
                self.look_up(&mut requests, each)?;
            }
        }
        Ok(())
    }

    fn apply(&mut self, transaction: &Transaction, generation: Option<u32>) -> Result<u32, NftError> {
        let mut batch = Batch::new(generation)?;
        let (mut sent, mut room) = (0, self.room(batch.size())?);
        for (start, operations) in transaction.parts() {
            let part = batch.requests.count();
            batch.extend(&transaction.table, start, operations)?;
            if batch.size() <= room {
                continue;
            }
            room = self.room(batch.size())?;
            if batch.size() > room && part > 1 {
                let rest = batch.split_off(part)?;
                self.send(transaction, std::mem::replace(&mut batch, rest), true)?;
                sent += 1;
                room = self.room(batch.size())?;
            }
            if batch.size() > room {
                return Err(NftError::TooBig { bytes: batch.size(), room });
            }
        }
        if !batch.origins.is_empty() {
            self.send(transaction, batch, true)?;
            sent += 1;
        }
        Ok(sent)
    }

    fn check(&mut self, transaction: &Transaction) -> Result<(), NftError> {
        let mut batch = Batch::new(None)?;
        batch.extend(&transaction.table, 0, transaction.operations())?;
        self.room(batch.size())?;
        if batch.origins.is_empty() { Ok(()) } else { self.send(transaction, batch, false) }
    }
}

/// The request for all objects of a family.
fn unnamed(table: &Table, message: u8) -> Request {
    Request::new(nfnetlink(NFNL_SUBSYS_NFTABLES, message), 0, &nfgenmsg(table.family.nfproto()))
}
