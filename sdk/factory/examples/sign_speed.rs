//! What signing a whole factory costs, with all signers in one process on one thread.
//!
//! The shape is the one the C reference implementation was measured on: a binary tree of one-member
//! leaves, a kickoff and a state per node. With 127 members that is 506 transactions and 2,536
//! partial signatures. Partial signatures are not verified, final ones are.
//!
//! `cargo run --release -p superscalar-factory --example sign_speed [members] [rounds]`

#![expect(
    clippy::print_stdout,
    reason = "the figures are what this program is for"
)]

use std::{env, error::Error, fs, ops::Range, time::Instant};

use bitcoin::{
    TapNodeHash,
    hashes::{Hash, sha256},
    secp256k1::PublicKey,
};
use superscalar_factory::signing::{
    AggregateNonce, FactoryKey, NoncePool, PartialSignature, PublicNonce, SignerSet,
    SigningSession, TweakedKey, verify,
};

/// The transactions signed per tree node: a kickoff and a state.
const MESSAGES_PER_NODE: usize = 2;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let members = arguments.next().map_or(Ok(127), |text| text.parse())?;
    let rounds = arguments.next().map_or(Ok(9), |text| text.parse::<u32>())?;

    if members == 0 || rounds == 0 {
        return Err("at least one member and one round".into());
    }

    let keys: Vec<_> = (0..=members)
        .map(|slot| FactoryKey::derive(&bytes("seed", slot), &bytes("salt", slot)))
        .collect();
    let nodes = nodes(1..members + 1);
    // Slot 0, the LSP, signs everywhere.
    let slots: Vec<Vec<usize>> = nodes
        .iter()
        .map(|node| [0].into_iter().chain(node.clone()).collect())
        .collect();

    let cpu_before_ns = cpu_ns();
    let runs = (0..rounds)
        .map(|round| sign_factory(&keys, &slots, round))
        .collect::<Result<Vec<_>, _>>()?;
    let cpu_after_ns = cpu_ns();

    println!("{members} members, {} nodes, {rounds} rounds", nodes.len());
    println!(
        "{:<34} {:>6} {:>9} {:>9}",
        "median of the rounds", "count", "µs each", "s"
    );
    let mut total_s = 0.0;
    let mut verification_s = 0.0;
    for phase in 0..runs[0].len() {
        let mut elapsed: Vec<f64> = runs.iter().map(|run| run[phase].elapsed_s).collect();
        elapsed.sort_by(f64::total_cmp);
        let median_s = elapsed[elapsed.len() / 2];
        let Phase { name, count, .. } = runs[0][phase];
        println!(
            "{name:<34} {count:>6} {:>9.1} {median_s:>9.4}",
            median_s * 1e6 / count as f64
        );
        if name == FINAL_VERIFICATION {
            verification_s = median_s;
        } else {
            total_s += median_s;
        }
    }
    println!(
        "{:<51} {total_s:>9.4}",
        "whole factory, final signatures verified"
    );
    println!(
        "{:<51} {:>9.4}",
        "whole factory, nothing verified",
        total_s - verification_s
    );
    if let (Some(before), Some(after)) = (cpu_before_ns, cpu_after_ns) {
        // Coarse, so over all rounds; the second, separate verification is taken off again.
        let mean_s = (after - before) as f64 / 1e9 / f64::from(rounds) - verification_s;
        println!(
            "{:<51} {mean_s:>9.4}",
            "CPU time per factory, final signatures verified"
        );
    }
    Ok(())
}

const FINAL_VERIFICATION: &str = "(final verification alone)";

/// One step of the ceremony and what all of it took.
struct Phase {
    name: &'static str,
    count: usize,
    elapsed_s: f64,
}

/// Signs a whole factory, then verifies every signature once more, apart, as the last phase.
fn sign_factory(
    keys: &[FactoryKey],
    slots: &[Vec<usize>],
    round: u32,
) -> Result<Vec<Phase>, Box<dyn Error>> {
    let messages = slots.len() * MESSAGES_PER_NODE;
    let partial_count = MESSAGES_PER_NODE * slots.iter().map(Vec::len).sum::<usize>();
    let publics: Vec<PublicKey> = keys.iter().map(FactoryKey::public).collect();
    let mut clock = Clock::start();
    let mut phases = Vec::new();

    let sets = slots
        .iter()
        .map(|slots| SignerSet::new(&slots.iter().map(|slot| publics[*slot]).collect::<Vec<_>>()))
        .collect::<Result<Vec<_>, _>>()?;
    phases.push(clock.lap("key aggregations", sets.len()));

    let tweaked: Vec<TweakedKey> = (0..messages)
        .map(|message| {
            let root = TapNodeHash::from_byte_array(bytes("root", message));
            sets[message / MESSAGES_PER_NODE].tweaked(root)
        })
        .collect();
    phases.push(clock.lap("taproot tweaks", messages));

    let mut pools = Vec::new();
    for (slot, key) in keys.iter().enumerate() {
        let count = MESSAGES_PER_NODE * slots.iter().filter(|node| node.contains(&slot)).count();
        let randomness: Vec<_> = (0..count)
            .map(|nonce| bytes(&format!("nonce {round} {slot}"), nonce))
            .collect();
        let mut pool = NoncePool::new(key);
        pool.refill(key, &randomness)?;
        pools.push(pool);
    }
    phases.push(clock.lap("nonces", partial_count));

    let mut secret_nonces = Vec::new();
    let mut public_nonces: Vec<Vec<PublicNonce>> = Vec::new();
    for message in 0..messages {
        let signers = &slots[message / MESSAGES_PER_NODE];
        let secret = signers
            .iter()
            .map(|slot| pools[*slot].take())
            .collect::<Result<Vec<_>, _>>()?;
        public_nonces.push(secret.iter().map(|nonce| nonce.public()).collect());
        secret_nonces.push(secret);
    }
    let sums = public_nonces
        .iter()
        .map(|nonces| AggregateNonce::sum(nonces))
        .collect::<Result<Vec<_>, _>>()?;
    phases.push(clock.lap("nonce sums", messages));

    let sessions: Vec<_> = (0..messages)
        .map(|message| SigningSession::new(&tweaked[message], sums[message], bytes("tx", message)))
        .collect();
    phases.push(clock.lap("sessions opened", messages));

    let mut partials: Vec<Vec<PartialSignature>> = Vec::new();
    for (message, secret) in secret_nonces.into_iter().enumerate() {
        let signers = &slots[message / MESSAGES_PER_NODE];
        let signed = secret
            .into_iter()
            .zip(signers)
            .map(|(nonce, slot)| sessions[message].partial_sign(nonce, &keys[*slot]))
            .collect::<Result<Vec<_>, _>>()?;
        partials.push(signed);
    }
    phases.push(clock.lap("partial signatures", partial_count));

    let signatures = sessions
        .iter()
        .zip(public_nonces.iter().zip(&partials))
        .map(|(session, (nonces, partials))| session.aggregate(nonces, partials))
        .collect::<Result<Vec<_>, _>>()?;
    phases.push(clock.lap("aggregations, each verified", messages));

    for (message, signature) in signatures.iter().enumerate() {
        if !verify(
            &tweaked[message].output_key(),
            &bytes("tx", message),
            signature,
        ) {
            return Err(format!("signature {message} is invalid").into());
        }
    }
    phases.push(clock.lap(FINAL_VERIFICATION, messages));
    Ok(phases)
}

/// The member slots below every node of a binary tree, leaves included.
fn nodes(members: Range<usize>) -> Vec<Range<usize>> {
    let mut nodes = vec![members.clone()];
    if members.len() > 1 {
        let middle = members.start + members.len().div_ceil(2);
        nodes.extend(self::nodes(members.start..middle));
        nodes.extend(self::nodes(middle..members.end));
    }
    nodes
}

/// A stopwatch that tells phases apart.
struct Clock {
    last: Instant,
}

impl Clock {
    fn start() -> Self {
        Self {
            last: Instant::now(),
        }
    }

    fn lap(&mut self, name: &'static str, count: usize) -> Phase {
        let elapsed_s = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        Phase {
            name,
            count,
            elapsed_s,
        }
    }
}

/// CPU time of this thread so far, where the system tells (Linux, in steps of milliseconds).
fn cpu_ns() -> Option<u64> {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    stat.split_whitespace().next()?.parse().ok()
}

/// 32 bytes that differ for every label and index.
fn bytes(label: &str, index: usize) -> [u8; 32] {
    sha256::Hash::hash(format!("{label} {index}").as_bytes()).to_byte_array()
}
