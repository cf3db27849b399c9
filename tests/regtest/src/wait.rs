//! Waiting for a condition instead of for a time.

use std::future::Future;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(20);

/// What was waited for did not come true in time.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("waited {} s in vain: {what}", waited.as_secs_f32())]
#[non_exhaustive]
pub struct TimedOut {
    /// The condition in words.
    pub what: String,
    /// How long it was waited for.
    pub waited: Duration,
}

/// Blocks until `condition` holds, asking every 20 ms and at least once.
///
/// # Errors
/// [`TimedOut`] when it did not hold within `limit`.
pub fn wait_until(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> bool,
) -> Result<(), TimedOut> {
    let started = Instant::now();
    while !condition() {
        let waited = started.elapsed();
        if waited >= limit {
            return Err(TimedOut {
                what: what.to_owned(),
                waited,
            });
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// [`wait_until`] for async code: `condition` is awaited, the worker thread stays free.
///
/// # Errors
/// [`TimedOut`] when it did not hold within `limit`.
pub async fn wait_until_async<F: Future<Output = bool>>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> F,
) -> Result<(), TimedOut> {
    let started = Instant::now();
    while !condition().await {
        let waited = started.elapsed();
        if waited >= limit {
            return Err(TimedOut {
                what: what.to_owned(),
                waited,
            });
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_true_condition_is_seen_even_without_time() {
        assert_eq!(wait_until("now", Duration::ZERO, || true), Ok(()));
    }

    #[test]
    fn the_message_names_what_was_waited_for() {
        let mut asked = 0;
        let error = wait_until("the tip at 7", Duration::from_millis(50), || {
            asked += 1;
            false
        });
        assert!(
            error
                .unwrap_err()
                .to_string()
                .ends_with("s in vain: the tip at 7")
        );
        assert!(asked >= 2);
    }

    #[tokio::test]
    async fn async_conditions_are_awaited() {
        let mut asked = 0;
        let done = wait_until_async("third time", Duration::from_secs(5), || {
            asked += 1;
            std::future::ready(asked == 3)
        });
        assert_eq!(done.await, Ok(()));
    }
}
