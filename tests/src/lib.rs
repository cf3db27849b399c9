//! End-to-end and adversarial tests of SuperScalar factories, and what they share.

pub use superscalar_regtest as regtest;
