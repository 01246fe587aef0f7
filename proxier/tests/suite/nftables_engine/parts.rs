//! Transactions that are more than one batch.

use std::sync::Arc;

use netfilter::IpFamily;
use netfilter::kernel::NftTables;
use netfilter::kernel::nftables::NftError;
use netfilter::nft::{Element, Field, Key, Operation, Set, Table, Transaction};

use super::kernel::Real;

/// So many elements in parts of a thousand.
fn transaction(parts: u32, bad: Option<u32>) -> Transaction {
    let mut transaction = Transaction::on(Table { family: IpFamily::V4, name: "kube-proxy".into() });
    transaction.push(Operation::AddTable { comment: None });
    let set = Arc::new(Set::of("numbers", [Field::random(65535)]));
    transaction.push(Operation::AddSet(set.clone()));
    for part in 0..parts {
        transaction.cut();
        if bad == Some(part) {
            transaction.push(Operation::DeleteChain("nowhere".into()));
        }
        let numbers = part * 1000..(part + 1) * 1000;
        let elements = numbers.map(|number| Element::member(Key::default().number(number).build()));
        transaction.push(Operation::AddElements(set.clone(), elements.collect()));
    }
    transaction
}

fn count(engine: &mut dyn NftTables, transaction: &Transaction) -> usize {
    let Operation::AddSet(set) = &transaction.operations()[1] else { panic!("the second adds a set") };
    let mut count = 0;
    engine.elements(&transaction.table, set, &mut |_| count += 1).expect("it can be read");
    count
}

#[test]
fn a_big_transaction_is_taken_whole() {
    let mut engine = Real::new().engine();
    // Three megabytes: more than a socket's usual room.
    let big = transaction(120, None);
    let before = engine.generation().expect("a number");
    engine.apply(&big, Some(before)).expect("root of the host may send so much");
    assert_eq!(count(engine.as_mut(), &big), 120_000);
    assert_eq!(engine.generation().expect("a number"), before + 1, "it was one batch");
    let bad = transaction(130, Some(125));
    let error = engine.apply(&bad, None).expect_err("there is no such chain");
    assert!(error.to_string().contains("delete chain ip kube-proxy nowhere: No such file"), "{error}");
    assert_eq!(count(engine.as_mut(), &big), 120_000, "nothing of it was done");
}

#[test]
fn parts_are_where_the_cuts_are() {
    let cut = transaction(3, None);
    let starts: Vec<usize> = cut.parts().map(|(start, _)| start).collect();
    assert_eq!(starts, [0, 2, 3, 4]);
    let operations: usize = cut.parts().map(|(_, part)| part.len()).sum();
    assert_eq!(operations, cut.operations().len());
    let mut uncut = Transaction::on(cut.table.clone());
    assert_eq!(uncut.parts().count(), 0);
    uncut.cut();
    uncut.push(Operation::DeleteTable);
    uncut.cut();
    assert_eq!(uncut.parts().map(|(start, part)| (start, part.len())).collect::<Vec<_>>(), [(0, 1)]);
}

#[test]
fn each_of_a_thousand_refused_operations_is_reported() {
    let mut engine = Real::new().engine();
    let mut bad = transaction(1, None);
    (0..1000).for_each(|number| bad.push(Operation::DeleteChain(format!("nowhere-{number}").as_str().into())));
    for error in [engine.apply(&bad, None), engine.check(&bad).map(|()| 0)].map(|result| result.expect_err("no chains"))
    {
        let NftError::Refused(refusals) = error else { panic!("{error}") };
        let named: Vec<_> = refusals.iter().filter_map(|refusal| refusal.operation).collect();
        assert_eq!(named, (3..1003).collect::<Vec<_>>());
    }
}
