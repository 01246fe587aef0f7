//! Looks twice at differences while a proxy runs: it may be about to write them.

use proxier_inspect::node::{COMPARISON, Focus, Unread};

use super::Report;
use crate::inspect::arguments::Sources;
use crate::inspect::{NodeInspection, SYNC_TIME, inspect_node};

/// The node and its report; if there are differences and a proxy runs, those that are still there after the time of a sync.
///
/// # Errors
/// If the configuration is invalid.
pub fn read(sources: &Sources, focus: &Focus) -> Result<(NodeInspection, Report), String> {
    let mut seen = inspect_node(sources, focus)?;
    let first = Report::of(&mut seen, focus);
    let before = first.differences.as_ref().filter(|differences| !differences.is_empty());
    let Some(before) = before.filter(|_| seen.configuration.is_some() || !seen.running_proxies().is_empty()) else {
        return Ok((seen, first));
    };
    std::thread::sleep(SYNC_TIME);
    let mut seen = inspect_node(sources, focus)?;
    let mut second = Report::of(&mut seen, focus);
    if let Some(after) = &mut second.differences {
        let gone = before.iter().filter(|difference| !after.contains(difference)).count();
        let all = after.len();
        after.retain(|difference| before.contains(difference));
        let passing = gone + all - after.len();
        if passing > 0 {
            let why = format!(
                "rules changed while they were read: {passing} differences that came or went within {SYNC_TIME:?} are left out"
            );
            second.unread.push(Unread::new(COMPARISON, why));
        }
    }
    Ok((seen, second))
}
