//! The demo: separate processes on a real chain, from a factory's funding to a member that leaves
//! alone after the LSP was killed; checked against bitcoind to the satoshi, and drawn.

pub mod books;
pub mod checker;
pub mod ledger;
pub mod outside;
pub mod picture;
pub mod progress;
pub mod published;
pub mod steps;
pub mod table;
mod tree;
pub mod words;
