//! Regtest harness.
