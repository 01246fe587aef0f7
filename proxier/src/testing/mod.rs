//! API objects for tests and benches.

pub mod objects;
