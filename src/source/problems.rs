//! Which problems of objects were logged.
//!
//! Relists and changes of other fields deliver an object again: its problems are logged only where they are new.

use std::collections::BTreeMap;

use proxier::track::{Change, Kind, ObjectKey};

/// The problems of each object that were logged, as long as the object has them.
#[derive(Debug, Default)]
pub struct LoggedProblems(BTreeMap<ObjectKey, ObjectProblems>);

#[derive(Debug, Default)]
struct ObjectProblems {
    texts: Vec<String>,
    /// Whether the object was delivered since the last list of its kind began.
    listed: bool,
}

impl LoggedProblems {
    /// Replaces the problems of a delivered object. Returns those that are new.
    pub fn replace(&mut self, key: &ObjectKey, problems: &[String]) -> Vec<String> {
        let known = self.0.remove(key).unwrap_or_default().texts;
        if !problems.is_empty() {
            self.0.insert(key.clone(), ObjectProblems { texts: problems.to_vec(), listed: true });
        }
        problems.iter().filter(|problem| !known.contains(problem)).cloned().collect()
    }

    /// Forgets an object that was deleted.
    pub fn remove(&mut self, key: &ObjectKey) {
        self.0.remove(key);
    }

    /// Follows the lists of a kind: objects that a whole list does not have were deleted before it, without an event.
    pub fn mark(&mut self, change: &Change) {
        match change {
            Change::Listing(kind) => self.of(*kind).for_each(|(_, problems)| problems.listed = false),
            Change::Listed(kind) => self.0.retain(|key, problems| key.kind != *kind || problems.listed),
            _ => {}
        }
    }

    fn of(&mut self, kind: Kind) -> impl Iterator<Item = (&ObjectKey, &mut ObjectProblems)> {
        self.0.iter_mut().filter(move |(key, _)| key.kind == kind)
    }

    /// The number of remembered problems of each object.
    #[cfg(test)]
    pub fn counts(&self) -> Vec<usize> {
        self.0.values().map(|problems| problems.texts.len()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proxier::model::NamespacedName;

    use super::*;

    fn key(kind: Kind, name: &str) -> ObjectKey {
        ObjectKey { kind, name: NamespacedName::new("default", name) }
    }

    #[test]
    fn problem_is_new_once_and_again_after_the_object_was_mended() {
        let (mut logged, web) = (LoggedProblems::default(), key(Kind::Service, "web"));
        let both = ["no port", "no address"].map(str::to_owned);
        assert_eq!(logged.replace(&web, &both[..1]), both[..1]);
        assert_eq!(logged.replace(&web, &both), both[1..]);
        assert_eq!(logged.replace(&web, &[]), [""; 0]);
        assert_eq!(logged.replace(&web, &both[..1]), both[..1]);
    }

    #[test]
    fn objects_that_a_list_does_not_have_are_forgotten() {
        let mut logged = LoggedProblems::default();
        let problem = ["no port".to_owned()];
        let [gone, kept] = ["gone", "kept"].map(|name| key(Kind::Service, name));
        let other = key(Kind::EndpointSlice, "other");
        for key in [&gone, &kept, &other] {
            logged.replace(key, &problem);
        }
        // A list that failed begins again; one in part does not tell what was deleted.
        for end in [Change::Listing(Kind::Service), Change::ListedInPart(Kind::Service)] {
            logged.mark(&Change::Listing(Kind::Service));
            logged.mark(&end);
            assert_eq!(logged.counts().len(), 3, "{end:?}");
        }
        logged.mark(&Change::Listing(Kind::Service));
        assert_eq!(logged.replace(&kept, &problem), [""; 0]);
        logged.mark(&Change::Listed(Kind::Service));
        let left: Vec<&ObjectKey> = logged.0.keys().collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left.contains(&&kept) && left.contains(&&other), "{left:?}");
    }
}
