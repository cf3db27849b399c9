//! The factory protocol.

pub mod signing;
