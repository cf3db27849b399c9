//! Whether consensus lets a transaction into a block of a given height: `nLockTime` and BIP68.
//!
//! Heights only: a factory uses no time-based lock, and one is refused here rather than guessed.

use bitcoin::absolute::LOCK_TIME_THRESHOLD;
use bitcoin::{Sequence, Transaction};

/// BIP68: this bit makes a relative lock one of time.
const TIME_FLAG: u32 = 1 << 22;
/// BIP68: the bits that hold the relative lock.
const VALUE_MASK: u32 = 0xffff;

/// Why a transaction may not be in a block, or why that cannot be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TimelockError {
    /// `nLockTime` is not over.
    #[error("nLockTime {lock_time}: not before block {allowed}")]
    Absolute {
        /// The height in the transaction.
        lock_time: u32,
        /// The first block that may hold it.
        allowed: u32,
    },
    /// A relative lock (BIP68) is not over, or (with no delay) the input does not yet exist.
    #[error("input {input} must be {delay} blocks old: not before block {allowed}")]
    Relative {
        /// Index of the input.
        input: usize,
        /// Blocks the input must be old; 0 if it has no lock in force.
        delay: u16,
        /// The first block that may hold the transaction, as far as this input is concerned.
        allowed: u32,
    },
    /// A lock of time and not of height.
    #[error("a time-based lock, which no transaction of a factory has")]
    TimeBased,
    /// There must be one height per input.
    #[error("{heights} heights for {inputs} inputs")]
    Heights {
        /// Inputs of the transaction.
        inputs: usize,
        /// Heights given.
        heights: usize,
    },
}

/// Checks that a block at `height` may hold `transaction`, whose inputs confirmed at
/// `input_heights` (the height itself for an input created in the same block).
///
/// # Errors
/// Which lock forbids it (the one of `nLockTime` first, as consensus checks it), or
/// [`TimelockError::TimeBased`] or [`TimelockError::Heights`].
pub fn check(
    transaction: &Transaction,
    input_heights: &[u32],
    height: u32,
) -> Result<(), TimelockError> {
    let absolute = absolute(transaction)?;
    if let Some(allowed) = absolute.filter(|allowed| height < *allowed) {
        let lock_time = transaction.lock_time.to_consensus_u32();
        return Err(TimelockError::Absolute { lock_time, allowed });
    }
    for relative in relatives(transaction, input_heights)? {
        let relative = relative?;
        if height < relative.allowed {
            return Err(TimelockError::Relative {
                input: relative.input,
                delay: relative.delay,
                allowed: relative.allowed,
            });
        }
    }
    Ok(())
}

/// The height of the first block that may hold `transaction`: [`check`] refuses every lower one
/// and no higher one.
///
/// # Errors
/// [`TimelockError::TimeBased`] or [`TimelockError::Heights`].
pub fn earliest_height(
    transaction: &Transaction,
    input_heights: &[u32],
) -> Result<u32, TimelockError> {
    let mut earliest = absolute(transaction)?.unwrap_or(0);
    for relative in relatives(transaction, input_heights)? {
        earliest = earliest.max(relative?.allowed);
    }
    Ok(earliest)
}

/// The first height `nLockTime` allows (it names the last one it forbids); `None` if it is not in
/// force, which all-final sequence numbers also say.
fn absolute(transaction: &Transaction) -> Result<Option<u32>, TimelockError> {
    let lock_time = transaction.lock_time.to_consensus_u32();
    let mut inputs = transaction.input.iter();
    if lock_time == 0 || inputs.all(|input| input.sequence == Sequence::MAX) {
        return Ok(None);
    }
    if lock_time >= LOCK_TIME_THRESHOLD {
        return Err(TimelockError::TimeBased);
    }
    Ok(Some(lock_time + 1))
}

struct Relative {
    input: usize,
    delay: u16,
    allowed: u32,
}

fn relatives<'a>(
    transaction: &'a Transaction,
    input_heights: &'a [u32],
) -> Result<impl Iterator<Item = Result<Relative, TimelockError>> + 'a, TimelockError> {
    let inputs = transaction.input.len();
    let heights = input_heights.len();
    if inputs != heights {
        return Err(TimelockError::Heights { inputs, heights });
    }
    // Consensus reads the version as unsigned; BIP68 begins with version 2.
    let enforced = transaction.version.0 as u32 >= 2;
    let pairs = transaction.input.iter().zip(input_heights).enumerate();
    Ok(pairs.map(move |(index, (input, confirmed))| {
        let sequence = input.sequence;
        let delay = if !enforced || !sequence.is_relative_lock_time() {
            0
        } else if sequence.to_consensus_u32() & TIME_FLAG != 0 {
            return Err(TimelockError::TimeBased);
        } else {
            (sequence.to_consensus_u32() & VALUE_MASK) as u16
        };
        Ok(Relative {
            input: index,
            delay,
            allowed: confirmed.saturating_add(u32::from(delay)),
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::absolute::LockTime;
    use bitcoin::transaction::Version;
    use bitcoin::{OutPoint, ScriptBuf, TxIn, Witness};

    fn transaction(version: i32, lock_time: u32, sequences: &[u32]) -> Transaction {
        let input = |sequence: &u32| TxIn {
            previous_output: OutPoint::null(),
            script_sig: ScriptBuf::new(),
            sequence: Sequence(*sequence),
            witness: Witness::new(),
        };
        Transaction {
            version: Version(version),
            lock_time: LockTime::from_consensus(lock_time),
            input: sequences.iter().map(input).collect(),
            output: Vec::new(),
        }
    }

    #[test]
    fn a_relative_lock_counts_from_the_inputs_block() {
        let tx = transaction(3, 0, &[6]);
        assert_eq!(earliest_height(&tx, &[100]), Ok(106));
        assert_eq!(check(&tx, &[100], 106), Ok(()));
        assert_eq!(
            check(&tx, &[100], 105),
            Err(TimelockError::Relative {
                input: 0,
                delay: 6,
                allowed: 106
            })
        );
        // Same-block spends are allowed only without delay.
        assert!(check(&tx, &[100], 100).is_err());
        assert_eq!(check(&transaction(3, 0, &[0]), &[100], 100), Ok(()));
    }

    #[test]
    fn an_absolute_lock_names_the_last_block_it_forbids() {
        let tx = transaction(2, 500, &[0]);
        assert_eq!(
            check(&tx, &[1], 500),
            Err(TimelockError::Absolute {
                lock_time: 500,
                allowed: 501
            })
        );
        assert_eq!(check(&tx, &[1], 501), Ok(()));
        assert_eq!(check(&transaction(2, 500, &[u32::MAX]), &[1], 1), Ok(()));
    }

    #[test]
    fn the_later_lock_decides() {
        let tx = transaction(3, 500, &[10, 20]);
        assert_eq!(earliest_height(&tx, &[100, 100]), Ok(501));
        assert_eq!(earliest_height(&tx, &[100, 490]), Ok(510));
        assert_eq!(earliest_height(&tx, &[495, 100]), Ok(505));
    }

    #[test]
    fn locks_that_are_not_in_force() {
        // Version 1 knows no BIP68, bit 31 switches it off; negative versions are large ones.
        assert_eq!(check(&transaction(1, 0, &[6]), &[100], 100), Ok(()));
        let off = transaction(3, 0, &[1 << 31 | 6]);
        assert_eq!(check(&off, &[100], 100), Ok(()));
        // No block holds a spend of what a later block creates.
        assert!(check(&off, &[100], 99).is_err());
        assert_eq!(earliest_height(&off, &[100]), Ok(100));
        assert!(check(&transaction(-1, 0, &[6]), &[100], 100).is_err());
    }

    #[test]
    fn times_and_missing_heights_are_refused() {
        let time = TimelockError::TimeBased;
        assert_eq!(
            check(&transaction(2, 0, &[TIME_FLAG | 1]), &[1], 9),
            Err(time)
        );
        let late = LOCK_TIME_THRESHOLD;
        assert_eq!(check(&transaction(2, late, &[0]), &[1], 9), Err(time));
        assert_eq!(
            check(&transaction(2, 0, &[0]), &[], 9),
            Err(TimelockError::Heights {
                inputs: 1,
                heights: 0
            })
        );
        assert_eq!(
            earliest_height(&transaction(2, 0, &[u32::from(u16::MAX)]), &[u32::MAX]),
            Ok(u32::MAX)
        );
    }
}
