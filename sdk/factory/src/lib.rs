//! SuperScalar channel factories, as pure code.
//!
//! A factory is one on-chain output shared by an LSP and its members through a tree of pre-signed
//! transactions whose leaves fund ordinary Lightning channels. This crate says what a factory *is*
//! ([`terms`], [`tree`], [`scripts`], [`stock`]), what its parties *sign* ([`signing`]), how the two
//! roles behave ([`member`], [`coordinator`]), how inbound liquidity is sold ([`sale`]), how the tree
//! gets new epochs ([`epoch`]) and how a member leaves alone ([`exit`]).
//!
//! Nothing here does I/O, reads a clock, spawns a thread or draws a random number: heights, times
//! and randomness are inputs, and what has to happen in the world is returned as a list of effects
//! in the order in which it must happen. The same inputs give the same effects.

pub mod codec;
pub mod coordinator;
pub mod effect;
pub mod epoch;
pub mod exit;
pub mod journal;
pub mod member;
pub mod message;
mod path;
pub mod sale;
pub mod scripts;
pub mod shape;
pub mod signing;
pub mod stock;
pub mod terms;
pub mod timing;
pub mod tower;
pub mod tree;
pub mod wire;
