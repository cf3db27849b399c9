//! Hosts over real sockets, on channels whose leaves are not on chain.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod chain;
mod node;
mod store;

mod exits;
mod jit;
mod opening;
mod payments;
mod random;
