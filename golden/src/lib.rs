//! The conformance cases and the equipment of the tests, for tests only.

pub mod cluster;
pub mod netns;
