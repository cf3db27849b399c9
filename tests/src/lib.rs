//! End-to-end and adversarial tests of SuperScalar factories, and what they share.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "everything here is for tests, which fail by panicking"
)]

pub mod appointments;
pub mod demo;
pub mod ends;
pub mod network;
pub mod ordinary;
pub mod places;
pub mod processes;
pub mod remote;
mod reopening;
pub mod scale;
pub mod stage;
pub mod tap;
pub mod trail;
pub mod watching;
pub mod wire;

pub use superscalar_regtest as regtest;

/// Shows the log of all nodes on stderr, filtered by `RUST_LOG` (nothing unless set).
pub fn log_to_stderr() {
    if std::env::var_os("RUST_LOG").is_none() {
        return;
    }
    // An error means that another test of this process was first.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .try_init();
}
