//! Whether our state is the newest, once it was restored.
//!
//! Restored from a copy that was not the newest, a channel's own commitment may be a revoked one:
//! publishing it forfeits everything. A living peer proves that in `channel_reestablish`; LDK says so
//! in its log and panics. A channel that LDK closes before it has spoken to the peer is never proven
//! either way. What always holds: the proof is on disk before that panic, and from then on nothing
//! leaves that spends a leaf; a restored member's commitments wait until the LSP has confirmed its
//! channels or the user leaves. Outputs of the other side's commitment are always claimed.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use lightning::util::logger::Level;
use tokio::sync::watch;

use super::Store;
use crate::backup::RESTORED;

const PRIMARY: &str = "superscalar";
const KEY: &str = "old_state";
/// How LDK's last words begin, in the version that is pinned; an end-to-end test hears them.
const LAST_WORDS: &str = "We have fallen behind";
const SPEAKER: &str = "lightning::ln::channel";

/// What is known of our state.
pub(super) struct OldState {
    store: Store,
    proven: watch::Sender<bool>,
    unconfirmed: AtomicBool,
}

impl OldState {
    /// A server's state counts as confirmed: its members' channels are confirmed one by one, and
    /// it must answer their kickoffs meanwhile.
    pub(super) fn load(store: Store, is_member: bool) -> Result<OldState, lightning::io::Error> {
        let has = |primary: &str, secondary: &str, wanted: &str| {
            let keys = store.list(primary, secondary)?;
            Ok::<_, lightning::io::Error>(keys.iter().any(|key| key == wanted))
        };
        let known = has(PRIMARY, "", KEY)?;
        let restored = has(RESTORED.0, RESTORED.1, RESTORED.2)?;
        Ok(OldState {
            store,
            proven: watch::Sender::new(known),
            unconfirmed: AtomicBool::new(is_member && restored),
        })
    }

    /// Whether the state was restored and nobody has confirmed since that it is the newest.
    pub(super) fn is_unconfirmed(&self) -> bool {
        self.unconfirmed.load(Ordering::SeqCst)
    }

    /// From now on it counts as the newest.
    pub(super) fn confirm(&self) -> Result<(), lightning::io::Error> {
        let (primary, secondary, key) = RESTORED;
        self.store.remove(primary, secondary, key, false)?;
        self.unconfirmed.store(false, Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn is_proven(&self) -> bool {
        *self.proven.borrow()
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<bool> {
        self.proven.subscribe()
    }

    /// Hears everything LDK logs.
    pub(super) fn hear(&self, level: Level, module: &str, words: &fmt::Arguments<'_>) {
        let said = || words.to_string().starts_with(LAST_WORDS);
        if level != Level::Error || module != SPEAKER || !said() {
            return;
        }
        // Said again with the next connection, should this fail.
        if let Err(error) = self.store.write(PRIMARY, "", KEY, vec![1]) {
            tracing::error!(%error, "cannot record that our state is an old one");
        }
        self.proven.send_replace(true);
    }
}
