//! The SDK's lower rooms against a real bitcoind: following the chain, handing transactions over,
//! and on-chain coins.

mod common;

mod broadcast;
mod following;
mod killed;
mod onchain;
mod stopping;
