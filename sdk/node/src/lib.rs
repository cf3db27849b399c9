//! The wallet SDK.

pub mod hosting;
