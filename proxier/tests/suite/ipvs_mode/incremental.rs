//! Whatever happened, and in whatever order, the kernel is as a fresh start would make it.

use proptest::test_runner::TestRunner;

use super::fake::Fake;
use crate::common::cases::configuration;
use crate::common::cluster::{self, Operation};
use crate::common::run::{Kernel, Run};

#[test]
fn partial_syncs_equal_a_fresh_start() {
    check(false);
}

#[test]
fn partial_syncs_equal_a_fresh_start_despite_drift_failures_and_refusals() {
    check(true);
}

fn check(trouble: bool) {
    let mut runner = TestRunner::new(configuration(150));
    let result = runner.run(&cluster::operations(40, trouble), |operations| {
        history(operations);
        Ok(())
    });
    result.unwrap_or_else(|failure| panic!("{failure}"));
}

fn history(operations: Vec<Operation>) {
    let mut run = Run::new(Fake::default());
    let mut refuses = false;
    for operation in operations.into_iter().chain([Operation::Refuse(None), Operation::Sync]) {
        if let Operation::Refuse(what) = &operation {
            refuses = what.is_some();
        }
        if run.apply(operation).is_none() || refuses {
            continue;
        }
        let mut fresh = run.afresh();
        fresh.sync();
        // Bindings are in the order in which they came.
        assert_eq!(sorted(&run.kernel), sorted(&fresh.kernel), "left: incremental, right: fresh");
    }
}

fn sorted(kernel: &Fake) -> String {
    let mut bound = kernel.bound();
    bound.sort_unstable();
    let text = kernel.text();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with("kube-ipvs0 ")).collect();
    format!("{bound:?}\n{}", lines.join("\n"))
}
