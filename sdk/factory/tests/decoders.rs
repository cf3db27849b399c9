//! Everything that reads bytes: the committed corpus of the fuzzers, random bytes, and random
//! damage to valid encodings. Nothing panics, and what decodes encodes back.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "all of this program is tests and what they share"
)]

#[path = "../fuzz/targets.rs"]
#[allow(unreachable_pub, reason = "public for the fuzzers")]
mod targets;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use bitcoin::Amount;
use proptest::prelude::*;
use superscalar_factory::codec::{Decode as _, DecodeError, Encode as _, Reader};
use superscalar_factory::epoch::EpochLimits;
use superscalar_factory::exit::SignedPath;
use superscalar_factory::exit::package::{ExitPackage, PackagedPath};
use superscalar_factory::journal::{Dormant, Ended, Guard, Record, Unfunded};
use superscalar_factory::member;
use superscalar_factory::message::{EpochEnd, Message, QuoteRequest, Refusal, RefusalCode, Seek};
use superscalar_factory::terms::TimeoutPolicy;
use superscalar_factory::wire::{Assembler, Frame};
use world::{Party, TIP, World, key, plan};

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 4] = [
    ("wire", targets::wire),
    ("journal", targets::journal),
    ("terms", targets::terms),
    ("package", targets::package),
];

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target)
}

/// What a real ceremony says and writes down: the seeds of the corpus, by target and file name.
fn seeds() -> BTreeMap<(&'static str, String), Vec<u8>> {
    let mut seeds = BTreeMap::new();
    let mut world = World::new(4);
    world.run();
    world.confirm_funding(TIP + 1);
    let attempt = world.plan.attempt;
    let (code, field) = (RefusalCode::Terms, "expiry".to_owned());
    let refusal = Refusal {
        attempt,
        code,
        field,
    };
    let mut said: Vec<Message> = world
        .log
        .iter()
        .map(|(_, message)| message.clone())
        .collect();
    said.push(refusal.into());
    said.push(
        Seek {
            capacity: Amount::from_sat(500_000),
        }
        .into(),
    );
    for message in said {
        let name = format!("message-{:02}", message.number());
        seeds
            .entry(("wire", name))
            .or_insert_with(|| targets::frames(&message));
        if let Message::Terms(terms) = message {
            let path = (terms.header, terms.facts).to_bytes();
            seeds.insert(("terms", "path".to_owned()), path);
        }
    }
    let member = world.journal[&Party::Member(0)].clone();
    let mut lsp = world.journal[&Party::Lsp].clone();
    seeds.insert(("journal", "member".to_owned()), targets::records(&member));
    let mut dormant = member;
    dormant.truncate(4);
    dormant.extend([Dormant { code }.into(), Unfunded { height: 400 }.into()]);
    let dormant = targets::records(&dormant);
    seeds.insert(("journal", "member-dormant".to_owned()), dormant);
    seeds.insert(("journal", "lsp".to_owned()), targets::records(&lsp));
    lsp.truncate(2);
    lsp.push(Ended { code }.into());
    seeds.insert(("journal", "lsp-ended".to_owned()), targets::records(&lsp));
    let built = world.lsp.as_ref().unwrap().built().unwrap();
    let path = |slot| PackagedPath {
        from_height: TIP + 1,
        path: SignedPath::new(&built.tree, slot, built.named_signatures()).unwrap(),
    };
    for (name, slots) in [("one", 0..1), ("four", 0..4)] {
        let package = ExitPackage::new(slots.map(path).collect()).unwrap();
        seeds.insert(("package", name.to_owned()), package.to_bytes());
    }
    seeds.extend(sale_seeds());
    seeds.extend(epoch_seeds());
    let guarded = targets::records(&watched().journal[&Party::Member(0)]);
    seeds.insert(("journal", "member-guarded".to_owned()), guarded);
    for (name, policy) in [
        ("members-reclaim", TimeoutPolicy::MembersReclaim),
        ("lsp-reclaims", TimeoutPolicy::LspReclaims),
    ] {
        let mut terms = world.lsp.as_ref().unwrap().built().unwrap().terms.clone();
        terms.header.policy = policy;
        seeds.insert(("terms", name.to_owned()), terms.to_bytes());
    }
    seeds
}

/// A factory of two in which each has bought, one of them everything; and one has asked for more
/// than there is.
fn sold() -> World {
    let mut world = World::selling(plan(2));
    world.buy(0, 10_000);
    let everything = world.members[&0].sellable().whole;
    world.buy(0, everything.to_sat());
    world.buy(1, 20_000);
    let request = QuoteRequest {
        attempt: world.plan.attempt,
        amount: Amount::from_sat(1_000_000),
        funding_key: key("nobody", 0),
    };
    world.hand_over(Party::Member(1), Party::Lsp, request.into());
    world
}

fn sale_seeds() -> BTreeMap<(&'static str, String), Vec<u8>> {
    let mut seeds = BTreeMap::new();
    let world = sold();
    for (_, message) in world.log.iter().filter(|(_, it)| it.number() >= 14) {
        let name = format!("message-{:02}", message.number());
        let seed = || targets::frames(message);
        seeds.entry(("wire", name)).or_insert_with(seed);
    }
    for (name, who) in [
        ("member-sales", Party::Member(0)),
        ("lsp-sales", Party::Lsp),
    ] {
        let records = targets::records(&world.journal[&who]);
        seeds.insert(("journal", name.to_owned()), records);
    }
    let lsp = world.lsp.as_ref().unwrap();
    let built = lsp.built().unwrap();
    let path = |slot| {
        let path = SignedPath::new(&built.tree, slot, built.named_signatures()).unwrap();
        PackagedPath {
            from_height: TIP + 1,
            path: path.with_sales(lsp.stock_chain(slot).unwrap()).unwrap(),
        }
    };
    let package = ExitPackage::new((0..2).map(path).collect()).unwrap();
    seeds.insert(("package", "sales".to_owned()), package.to_bytes());
    seeds
}

/// A factory of four whose leaf has moved and was then carried into the root; before that an epoch
/// was signed by all but one and abandoned.
fn moved() -> World {
    let mut plan = plan(4);
    plan.timing.states = 3;
    plan.timing = plan.timing.with_least_blocks_early(2);
    let mut world = World::selling(plan);
    world.buy(0, 10_000);
    let mut asked = 0;
    world.tamper = Box::new(move |_, message| {
        let asks = matches!(message, Message::EpochCommit(_));
        asked += usize::from(asks);
        (!asks || asked == 1).then_some(message)
    });
    world.merge(0).unwrap();
    let effects = world.lsp.as_mut().unwrap().abandon_epoch();
    world.act(Party::Lsp, effects);
    world.deliver();
    world.tamper = Box::new(|_, message| Some(message));
    world.merge(0).unwrap();
    world.merge(0).unwrap();
    world.buy(0, 10_000);
    world
}

/// A factory of two who count on watchtowers: one has bought a channel, both have moved. The LSP
/// then completes an epoch of which it says to one that it never will, and publishes it.
fn watched() -> World {
    let mut plan = plan(2);
    plan.timing.states = 3;
    plan.timing = plan.timing.with_least_blocks_early(2);
    let mut world = World::selling(plan);
    for member in world.members.values_mut() {
        member.set_epoch_limits(Some(EpochLimits {
            guard: Guard::Watchtower,
            ..EpochLimits::default()
        }));
    }
    let mut wish = world.wish(0, 10_000);
    wish.guard = Guard::Watchtower;
    let sale = world.ask(0, wish).unwrap().unwrap();
    let bought = world.members[&0].next_channel().unwrap();
    world.accept(0, sale).unwrap();
    world.deliver();
    world.tell(0, member::Input::BoughtGuarded(bought));
    world.pay();
    world.deliver();
    world.merge(0).unwrap();
    for slot in 0..2 {
        world.tell(slot, member::Input::MovedGuarded { version: 1 });
    }
    world.deliver();
    world.tamper = Box::new(|_, message| {
        let completes = matches!(message, Message::EpochSig(_) | Message::EpochReveal(_));
        (!completes).then_some(message)
    });
    world.merge(0).unwrap();
    let mut written = world.journal[&Party::Lsp].iter().rev();
    let signature = written.find_map(|record| match record {
        Record::EpochSigned(body) => Some(body.signature),
        _ => None,
    });
    let mut said = world.log.iter().rev();
    let epoch = said.find_map(|(_, message)| match message {
        Message::EpochCommit(body) => Some(body.epoch.clone()),
        _ => None,
    });
    let end = EpochEnd {
        attempt: world.plan.attempt,
        epoch: epoch.unwrap(),
        code: RefusalCode::Silence,
    };
    world.hand_over(Party::Lsp, Party::Member(0), end.into());
    let tree = world.members[&0].newer_trees().last().unwrap();
    let state = tree.leaf(0).unwrap().state.signed(&signature.unwrap());
    world.tell(0, member::Input::StateSeen(state));
    world
}

fn epoch_seeds() -> BTreeMap<(&'static str, String), Vec<u8>> {
    let mut seeds = BTreeMap::new();
    let world = moved();
    for (_, message) in world.log.iter().filter(|(_, it)| it.is_of_epoch()) {
        let name = format!("message-{:02}", message.number());
        let seed = || targets::frames(message);
        seeds.entry(("wire", name)).or_insert_with(seed);
    }
    for (name, who) in [
        ("member-epochs", Party::Member(0)),
        ("lsp-epochs", Party::Lsp),
    ] {
        let records = targets::records(&world.journal[&who]);
        seeds.insert(("journal", name.to_owned()), records);
    }
    let packaged = PackagedPath {
        from_height: TIP + 1,
        path: world.members[&0].signed_path().unwrap().unwrap(),
    };
    let package = ExitPackage::new(vec![packaged]).unwrap();
    seeds.insert(("package", "epochs".to_owned()), package.to_bytes());
    seeds
}

/// The committed corpus holds what a ceremony of this version says (written anew with
/// `SUPERSCALAR_BLESS=1`), and nothing in it breaks a target.
#[test]
fn the_corpus_is_replayed() {
    let bless = std::env::var_os("SUPERSCALAR_BLESS").is_some();
    for ((target, name), bytes) in seeds() {
        let file = corpus(target).join(name);
        if bless {
            fs::create_dir_all(corpus(target)).unwrap();
            fs::write(&file, &bytes).unwrap();
        }
        let committed = fs::read(&file).unwrap_or_default();
        assert!(
            committed == bytes,
            "{} is not of this version",
            file.display()
        );
    }
    let (mut messages, mut records) = (Vec::new(), Vec::new());
    for (target, run) in TARGETS {
        for entry in fs::read_dir(corpus(target)).unwrap() {
            let path = entry.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            run(&bytes);
            match target {
                "wire" => messages.push(number(&bytes)),
                "journal" => records.extend(written(&bytes)),
                _ => {}
            }
        }
    }
    // One seed of every message there is, and of every record.
    for number in 0..=u16::MAX {
        let unknown = DecodeError::UnknownType {
            what: "message",
            typ: number.into(),
        };
        let known = Message::from_parts(number, &[]) != Err(unknown);
        assert!(
            !known || messages.contains(&number),
            "no seed of message {number}"
        );
    }
    for number in known_records() {
        assert!(records.contains(&number), "no seed of record {number}");
    }
}

/// The number that a record, or a message in one frame, begins with.
fn number(bytes: &[u8]) -> u16 {
    u16::from_be_bytes([bytes[0], bytes[1]])
}

/// The numbers of the records in a seed, as far as it can be read.
fn written(seed: &[u8]) -> Vec<u16> {
    let mut reader = Reader::new(seed);
    let mut numbers = Vec::new();
    while let Ok(length) = u32::decode(&mut reader, "length") {
        let Ok(record) = reader.take(length as usize, "record") else {
            break;
        };
        if Record::from_bytes(record, "Record").is_ok() {
            numbers.push(number(record));
        }
    }
    numbers
}

/// The number of every record there is.
fn known_records() -> BTreeSet<u16> {
    let known = |number: &u16| {
        let unknown = DecodeError::UnknownType {
            what: "record",
            typ: (*number).into(),
        };
        Record::from_bytes(&number.to_be_bytes(), "Record") != Err(unknown)
    };
    (0..=u16::MAX).filter(known).collect()
}

/// One byte string per record of whole factories, and of those that end before they are any.
fn all_records() -> Vec<Vec<u8>> {
    let mut records: Vec<Record> = Vec::new();
    for world in [sold(), moved()] {
        records.extend(world.journal.into_values().flatten());
    }
    records.extend_from_slice(&watched().journal[&Party::Member(0)]);
    let code = RefusalCode::Other;
    records.push(Ended { code }.into());
    records.push(Dormant { code }.into());
    records.push(Unfunded { height: 400 }.into());
    records.iter().map(|record| record.to_bytes()).collect()
}

#[test]
fn what_is_damaged_and_shuffled_is_of_every_kind() {
    let records = all_records();
    let kinds: BTreeSet<u16> = records.iter().map(|record| number(record)).collect();
    assert_eq!(kinds, known_records());
}

#[derive(Debug, Clone)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Vec<Damage>> {
    let index = any::<prop::sample::Index>;
    let one = prop_oneof![
        5 => (index(), 1u8..).prop_map(|(at, mask)| Damage::Flip(at, mask)),
        1 => index().prop_map(Damage::Cut),
        1 => (index(), prop::collection::vec(any::<u8>(), 1..40))
            .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
        1 => (index(), index()).prop_map(|(from, to)| Damage::Repeat(from, to)),
    ];
    prop::collection::vec(one, 1..4)
}

fn damaged(mut bytes: Vec<u8>, all: &[Damage]) -> Vec<u8> {
    for one in all {
        if bytes.is_empty() {
            break;
        }
        match one {
            Damage::Flip(at, mask) => {
                let at = at.index(bytes.len());
                bytes[at] ^= mask;
            }
            Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Damage::Insert(at, more) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, more.iter().copied());
            }
            Damage::Repeat(from, to) => {
                let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
                let piece = bytes[from.min(to)..from.max(to)].to_vec();
                bytes.extend(piece);
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        for (_, target) in TARGETS {
            target(&bytes);
        }
        for number in 0..=40 {
            let mut assembler = Assembler::default();
            let frame = Frame { submessage: number, payload: bytes.clone() };
            let _ = assembler.receive(&frame);
        }
        for number in 0..=48u16 {
            let _ = Record::from_bytes(&[&number.to_be_bytes(), &bytes[..]].concat(), "Record");
        }
    }

    #[test]
    fn damaged_encodings_never_panic(
        choice in any::<prop::sample::Index>(),
        damage in damage(),
    ) {
        thread_local! {
            static SEEDS: Vec<(&'static str, Vec<u8>)> =
                seeds().into_iter().map(|((target, _), bytes)| (target, bytes)).collect();
            static RECORDS: Vec<Vec<u8>> = all_records();
        }
        let (target, bytes) = SEEDS.with(|seeds| choice.get(seeds).clone());
        let (_, run) = TARGETS.iter().find(|(name, _)| *name == target).unwrap();
        run(&damaged(bytes, &damage));
        let record = damaged(RECORDS.with(|records| choice.get(records).clone()), &damage);
        if let Ok(decoded) = Record::from_bytes(&record, "Record") {
            prop_assert_eq!(Record::from_bytes(&decoded.to_bytes(), "Record"), Ok(decoded));
        }
    }

    /// Records of both roles, whole but in any order and number, replayed.
    #[test]
    fn no_order_of_records_panics(choices in prop::collection::vec(any::<prop::sample::Index>(), 0..9)) {
        thread_local! {
            static RECORDS: Vec<Record> = all_records()
                .iter()
                .map(|bytes| Record::from_bytes(bytes, "Record").unwrap())
                .collect();
        }
        RECORDS.with(|records| {
            // Most orders are refused at once, so both begin as a journal does.
            let is_first = |record: &&Record| {
                matches!(record, Record::MemberJoined(_) | Record::LspGathering(_))
            };
            for first in records.iter().filter(is_first) {
                let mut journal = vec![first.clone()];
                journal.extend(choices.iter().map(|choice| choice.get(records).clone()));
                targets::journal(&targets::records(&journal));
            }
        });
    }
}
