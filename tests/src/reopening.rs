//! A directory that was just given up, opened again.
//!
//! Between fork and exec a program that another test starts holds every file of this process open,
//! a directory's lock included: for that moment it is locked although nobody uses it.

use std::time::{Duration, Instant};

use superscalar_sdk::WalletError;

use crate::network::LIMIT;

/// Opens until the lock is free.
///
/// # Panics
/// When it does not get free, or what is opened does not open.
pub(crate) async fn reopened<T>(mut open: impl AsyncFnMut() -> Result<T, WalletError>) -> T {
    let until = Instant::now() + LIMIT;
    loop {
        match open().await {
            Ok(opened) => return opened,
            Err(error) if error.code() == "storage_locked" && Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}
