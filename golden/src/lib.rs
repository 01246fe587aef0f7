//! The conformance cases and the equipment of the tests, for tests only.

pub mod apiserver;
pub mod netns;
