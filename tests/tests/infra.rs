//! The SDK's lower rooms against a real bitcoind: following the chain, handing transactions over,
//! and on-chain coins.

// clippy.toml allows this in test functions, not in what they share.
#![allow(clippy::unwrap_used)]

#[path = "infra/common.rs"]
mod common;

#[path = "infra/broadcast.rs"]
mod broadcast;
#[path = "infra/following.rs"]
mod following;
#[path = "infra/killed.rs"]
mod killed;
#[path = "infra/onchain.rs"]
mod onchain;
#[path = "infra/stopping.rs"]
mod stopping;
