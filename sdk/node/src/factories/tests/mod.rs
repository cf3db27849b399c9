//! The engine with all its rooms on a chain that is told block by block: what is on disk before
//! what leaves, crashes after every durable write, ends that come with a height.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod ceremony;
mod crashes;
mod damaged;
mod device;
mod ends;
mod net;
mod order;
