//! What the handles of a wallet or server share: the node while it runs, nothing when it does not.

use std::sync::{Arc, PoisonError, RwLock};

use super::WalletError;
use crate::node::Node;
use crate::store::StoreError;

/// A handle that outlives a stop holds none of what was stopped.
#[derive(Clone, Default)]
pub(crate) struct NodeHandle(Arc<RwLock<Option<Arc<Node>>>>);

impl NodeHandle {
    /// The running node, or [`WalletError::Stopped`].
    ///
    /// # Errors
    /// Why it stopped, if it did so by itself.
    pub(crate) fn get(&self) -> Result<Arc<Node>, WalletError> {
        let node = self.last().ok_or(WalletError::Stopped)?;
        match node.lost() {
            Some(error) => Err(StoreError::from(error).into()),
            None => Ok(node),
        }
    }

    /// The node, also if it has stopped by itself.
    pub(crate) fn last(&self) -> Option<Arc<Node>> {
        let node = self.0.read().unwrap_or_else(PoisonError::into_inner);
        node.clone()
    }

    pub(crate) fn set(&self, node: Arc<Node>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(node);
    }

    pub(crate) fn take(&self) -> Option<Arc<Node>> {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}
