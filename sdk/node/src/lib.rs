//! The wallet SDK.

pub mod chain;
pub mod hosting;
pub mod keys;
pub mod onchain;
pub mod store;
