//! The factory protocol.
