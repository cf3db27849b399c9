//! A whole factory, from its terms to verified signatures, with all signers on one thread.

use std::collections::BTreeMap;
use std::error::Error;

use bitcoin::{Amount, Network, OutPoint};
use superscalar_factory::shape::{NodeId, Shape};
use superscalar_factory::signing::{
    AggregateNonce, FactoryKey, NoncePool, PublicNonce, SecretNonce, SigningSession,
};
use superscalar_factory::terms::{
    FeeRules, Header, Instance, PROTOCOL_VERSION, SlotRecord, Terms, TimeoutPolicy,
};
use superscalar_factory::timing::Timing;
use superscalar_factory::tree::Blueprint;

use crate::{Clock, Time, bytes, key, payout};

/// What is built.
pub(crate) struct Case {
    pub(crate) members: u16,
    pub(crate) shape: Shape,
    pub(crate) timing: Timing,
    pub(crate) policy: TimeoutPolicy,
}

/// What it took.
pub(crate) struct Run {
    pub(crate) transactions: usize,
    pub(crate) partials: usize,
    pub(crate) whole: Time,
    pub(crate) signing: Time,
    /// Kickoffs and states from the funding output to the deepest channel.
    pub(crate) exit_vbytes: usize,
    pub(crate) exit_count: usize,
}

pub(crate) fn run(case: &Case, round: u32) -> Result<Run, Box<dyn Error>> {
    // Keys exist before a factory is thought of; slot 0 signs as number 1, the LSP is number 0.
    let keys: Vec<FactoryKey> = (0..=u64::from(case.members))
        .map(|signer| FactoryKey::derive(&bytes("seed", signer), &bytes("salt", signer)))
        .collect();
    let terms = terms(case, &keys)?;
    let funding = OutPoint::null();

    let clock = Clock::start();
    let tree = Blueprint::whole(&terms)?.tree(funding)?;
    let mut pools = Vec::with_capacity(keys.len());
    let mut counts = vec![tree.transactions().count()];
    counts.extend((0..case.members).map(|slot| tree.signing_order(slot).len()));
    for (signer, (key, count)) in keys.iter().zip(&counts).enumerate() {
        let label = format!("nonce {round} {signer}");
        let randomness: Vec<_> = (0..*count as u64).map(|n| bytes(&label, n)).collect();
        let mut pool = NoncePool::new(key);
        pool.refill(key, &randomness)?;
        pools.push(pool);
    }
    let mut secrets: BTreeMap<_, Vec<(usize, SecretNonce)>> = BTreeMap::new();
    for tx in tree.transactions() {
        let slots = tree.topology().node(tx.name.node).slots.clone();
        let signers = [0]
            .into_iter()
            .chain(slots.map(|slot| usize::from(slot) + 1));
        for signer in signers {
            let nonce = pools[signer].take()?;
            secrets.entry(tx.name).or_default().push((signer, nonce));
        }
    }
    let mut sessions = Vec::new();
    for tx in tree.transactions() {
        let nonces = secrets.remove(&tx.name).unwrap_or_default();
        let publics: Vec<PublicNonce> = nonces.iter().map(|(_, nonce)| nonce.public()).collect();
        let session = SigningSession::new(&tx.key, AggregateNonce::sum(&publics)?, tx.sighash);
        sessions.push((session, publics, nonces));
    }
    let signing = Clock::start();
    let mut signed = Vec::new();
    for (session, publics, nonces) in sessions {
        let mut partials = Vec::with_capacity(publics.len());
        for (signer, nonce) in nonces {
            partials.push(session.partial_sign(nonce, &keys[signer])?);
        }
        signed.push((session, publics, partials));
    }
    let signing = signing.time();
    for (session, publics, partials) in &signed {
        // Verifies the final signature.
        session.aggregate(publics, partials)?;
    }
    let whole = clock.time();

    let exit = |slot: u16| -> Vec<usize> {
        let path = tree.topology().path(slot);
        let nodes = path.iter().filter_map(|node| tree.node(*node));
        nodes
            .flat_map(|node| [node.kickoff.vsize(), node.state.vsize()])
            .collect()
    };
    let paths = (0..case.members).map(exit);
    let longest = paths.max_by_key(|path| path.iter().sum::<usize>());
    let longest = longest.unwrap_or_default();
    Ok(Run {
        transactions: signed.len(),
        partials: signed.iter().map(|(_, _, partials)| partials.len()).sum(),
        whole,
        signing,
        exit_vbytes: longest.iter().sum(),
        exit_count: longest.len(),
    })
}

/// Who signs at each node, the LSP being number 0, and how many transactions.
pub(crate) fn signers(case: &Case) -> Result<BTreeMap<NodeId, Signers>, Box<dyn Error>> {
    let keys: Vec<FactoryKey> = (0..=u64::from(case.members))
        .map(|signer| FactoryKey::derive(&bytes("seed", signer), &bytes("salt", signer)))
        .collect();
    let tree = Blueprint::whole(&terms(case, &keys)?)?.tree(OutPoint::null())?;
    let mut all: BTreeMap<NodeId, Signers> = BTreeMap::new();
    for tx in tree.transactions() {
        let node = tx.name.node;
        let members = tree.topology().node(node).slots.clone();
        let members = members.map(|slot| usize::from(slot) + 1);
        let signers = all.entry(node).or_default();
        signers.numbers = [0].into_iter().chain(members).collect();
        signers.transactions += 1;
    }
    Ok(all)
}

/// See [`signers`].
#[derive(Default)]
pub(crate) struct Signers {
    pub(crate) numbers: Vec<usize>,
    pub(crate) transactions: usize,
}

fn terms(case: &Case, keys: &[FactoryKey]) -> Result<Terms, Box<dyn Error>> {
    let slot = |slot: u16| -> Result<SlotRecord, Box<dyn Error>> {
        let number = u64::from(slot);
        Ok(SlotRecord {
            member_key: keys[usize::from(slot) + 1].public(),
            capacity: Amount::from_sat(500_000),
            push_msat: 0,
            stock: Amount::from_sat(100_000),
            payout: payout(number + 1),
            member_funding_key: key("member funding", number)?,
            lsp_funding_key: key("lsp funding", number)?,
            stock_hash: bytes("stock hash", number),
            member_revocation_key: key("revocation", number)?.x_only_public_key().0,
        })
    };
    Ok(Terms {
        header: Header {
            instance: Instance(bytes("instance", 0)),
            attempt: 0,
            version: PROTOCOL_VERSION,
            network: Network::Regtest,
            lsp_key: keys[0].public(),
            lsp_payout: payout(0),
            shape: case.shape.clone(),
            timing: case.timing.clone(),
            expiry: 6_000,
            tree_feerate: 10,
            policy: case.policy,
            fee_rules: FeeRules::OperatorKeeps,
        },
        slots: (0..case.members).map(slot).collect::<Result<_, _>>()?,
    })
}
