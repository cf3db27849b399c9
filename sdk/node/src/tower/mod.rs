//! A watchtower, for an application of its own: see `examples/watchtower`.
//!
//! What always holds: a tower has signed transactions and nothing that signs for anybody; what it
//! acknowledges is on its disk and watched; what it refuses changes nothing, and it never drops one
//! appointment for another. What it publishes is decided in [`superscalar_factory::tower`], with the
//! planner every exit goes by.

mod book;
mod service;
#[cfg(test)]
mod tests;
mod watchman;

pub use service::{Clients, Tower, TowerBuilder, TowerError, TowerLimits, TowerStatus};
