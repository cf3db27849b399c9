//! The wallet SDK.

pub mod keys;
pub mod store;
