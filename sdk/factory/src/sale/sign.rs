//! One sale's transaction, signed by two: what both sub-roles do with it.

use crate::message::{NonceBytes, PartialBytes};
use crate::signing::{
    AggregateNonce, FactoryKey, NoncePool, PartialSignature, PublicNonce, SecretNonce,
    SigningSession,
};
use crate::stock::Link;

/// Fresh nonces of one process. The pool's counter keeps two apart even where the randomness
/// should repeat.
#[derive(Debug, Default)]
pub(super) struct Nonces(Option<NoncePool>);

impl Nonces {
    /// A nonce from 32 fresh random bytes; `None` if they are not random.
    pub(super) fn fresh(&mut self, key: &FactoryKey, randomness: &[u8; 32]) -> Option<SecretNonce> {
        let pool = self.0.get_or_insert_with(|| NoncePool::new(key));
        pool.refill(key, &[*randomness]).ok()?;
        pool.take().ok()
    }
}

/// The session of a sale: the LSP signs first, the member second.
pub(super) struct Session {
    nonces: [PublicNonce; 2],
    session: SigningSession,
}

impl Session {
    pub(super) fn new(link: &Link, lsp: PublicNonce, member: PublicNonce) -> Option<Session> {
        let nonces = [lsp, member];
        let aggregate = AggregateNonce::sum(&nonces).ok()?;
        Some(Session {
            session: SigningSession::new(&link.tx.key, aggregate, link.tx.sighash),
            nonces,
        })
    }

    /// Whether this is the member's partial signature.
    pub(super) fn is_members(&self, partial: &PartialBytes) -> bool {
        let partial = PartialSignature::from_bytes(partial).ok();
        partial.is_some_and(|it| self.session.verify_partial(1, &self.nonces[1], &it))
    }

    /// Signs; the nonce is gone afterwards.
    pub(super) fn sign(&self, nonce: SecretNonce, key: &FactoryKey) -> Option<PartialBytes> {
        let partial = self.session.partial_sign(nonce, key).ok()?;
        Some(partial.to_bytes())
    }

    /// The final signature from both partial ones.
    pub(super) fn complete(
        &self,
        lsp: PartialBytes,
        member: PartialBytes,
    ) -> Option<bitcoin::secp256k1::schnorr::Signature> {
        let signed = self.session.aggregate_bytes(&self.nonces, &[lsp, member]);
        signed.ok()
    }
}

/// Reads a nonce of the other side.
pub(super) fn nonce(bytes: &NonceBytes) -> Option<PublicNonce> {
    PublicNonce::from_bytes(bytes).ok()
}
