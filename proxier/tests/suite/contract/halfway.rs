//! Transactions that are cut off or killed: a table has all of a transaction or nothing.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use crate::common::real::{FLAVOURS, Real};

const CHAINS: usize = 300;

/// A transaction of many chains, each with a rule; `generation` tells it from others.
fn many(generation: usize) -> String {
    let mut text = "*nat\n".to_owned();
    for n in 0..CHAINS {
        let _ = writeln!(text, ":CHAIN-{n} - [0:0]");
    }
    for n in 0..CHAINS {
        let _ = writeln!(text, "-A CHAIN-{n} -s 10.0.{generation}.0/24 -j ACCEPT");
    }
    text + "COMMIT\n"
}

/// Which generation each chain is of; they have to be of the same.
fn generation(real: &Real) -> Option<usize> {
    let saved = real.saved();
    let rules: Vec<&str> = saved.lines().filter(|line| line.starts_with("-A CHAIN-")).collect();
    let of = |rule: &str| rule.split("-s 10.0.").nth(1)?.split('.').next()?.parse::<usize>().ok();
    let first = of(rules.first()?);
    assert!(rules.iter().all(|rule| of(rule) == first) && rules.len() == CHAINS, "half of a transaction:\n{saved}");
    first
}

/// Gives `input` to the restore tool and kills it after a while, if it still runs.
fn restore(real: &Real, input: &[u8], killed_after: Option<Duration>) {
    let mut command = real.program("-restore");
    command.args(["-w", "5", "--noflush"]).stdin(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("it can be started");
    let mut stdin = child.stdin.take().expect("it has an input");
    // One that is killed does not read to the end.
    let _ = stdin.write_all(input);
    drop(stdin);
    if let Some(after) = killed_after {
        // No order is made by this: some moment of its life.
        std::thread::sleep(after);
        child.kill().expect("it may be over, but it is ours");
    }
    child.wait().expect("it ends");
}

#[test]
fn a_transaction_that_is_cut_off_changes_nothing() {
    for flavour in FLAVOURS {
        let real = Real::new(flavour);
        restore(&real, many(1).as_bytes(), None);
        assert_eq!(generation(&real), Some(1), "{flavour:?}");
        let next = many(2);
        for end in [next.len() / 3, next.len() * 2 / 3, next.len() - "COMMIT\n".len()] {
            restore(&real, &next.as_bytes()[..end], None);
            assert_eq!(generation(&real), Some(1), "{flavour:?}: {end} bytes of it");
        }
    }
}

#[test]
fn a_tool_that_is_killed_leaves_all_or_nothing() {
    for flavour in FLAVOURS {
        let real = Real::new(flavour);
        let mut now = 0;
        restore(&real, many(now).as_bytes(), None);
        for next in 1..16_u16 {
            restore(&real, many(next.into()).as_bytes(), Some(Duration::from_millis(u64::from(next) * 2)));
            let found = generation(&real).expect("one of the two");
            assert!(found == now || found == usize::from(next), "{flavour:?}: {found} after {now}, not {next}");
            now = found;
        }
    }
}
