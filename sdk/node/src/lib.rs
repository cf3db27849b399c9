//! The wallet SDK.
