//! What several groups use: clusters, changes, and kernels to run a mode in.

pub mod cases;
pub mod cluster;
pub mod namespace;
pub mod real;
pub mod run;
