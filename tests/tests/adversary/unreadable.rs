//! Bytes that are no message, and messages that have no end: who hears them names what it could not
//! read and is where it was before.

use std::sync::{Arc, Mutex};

use superscalar_factory::codec::{Encode as _, Reader, write_big_size};
use superscalar_factory::message::{Message, Refusal, RefusalCode};
use superscalar_factory::wire::{Bytes, MAX_MESSAGE, MAX_PIECE, PART, Part};
use superscalar_tests::network::TestNetwork;
use superscalar_tests::tap::{self, INIT, Rule, Side};

use crate::adversary::building::{attempt, honest};

/// No message has this number.
const UNKNOWN: u16 = 998;
/// So many refusals a minute a peer is told of; then it is hung up on.
const PATIENCE: usize = 64;

/// The last value of a TLV stream loses its last byte, and the stream is in order. Gives the field
/// that is too short then.
fn shortened(message: &Message) -> (Vec<u8>, &'static str) {
    let payload = message.payload();
    let mut reader = Reader::new(&payload);
    let mut streamed = Vec::new();
    while !reader.is_empty() {
        write_big_size(reader.big_size("type").unwrap(), &mut streamed);
        let length = reader.length(u64::MAX, "length").unwrap();
        let mut value = reader.take(length, "value").unwrap();
        if reader.is_empty() {
            value = &value[..length - 1];
        }
        write_big_size(value.len() as u64, &mut streamed);
        streamed.extend_from_slice(value);
    }
    let field = match message {
        Message::Invite(_) => "round_seconds",
        Message::Join(_) | Message::Terms(_) => "nonces",
        Message::PartialSigs(_) => "partials",
        Message::NodeSigs(_) => "signatures",
        Message::PathAck(_) | Message::RootAck(_) => "number",
        Message::Identity(_) => "blocks_early",
        Message::RootPartial(_) => "partial",
        Message::RootSig(_) => "signature",
        other => panic!("nobody says this while building: {other:?}"),
    };
    (streamed, field)
}

/// One piece of a message that nobody could read.
fn part(index: u16, count: u16) -> tap::Message {
    let part = Part {
        submessage: UNKNOWN,
        index,
        count,
        bytes: Bytes(vec![1; MAX_PIECE]),
    };
    tap::Message::raw(PART, &part.to_bytes())
}

/// What `message` could be on its way here, and what the other side says it could not read.
fn damaged(message: &Message) -> Vec<(Vec<tap::Message>, &'static str)> {
    let (number, payload) = (message.number(), message.payload());
    let one = |number, payload: &[u8], field| (vec![tap::Message::raw(number, payload)], field);
    let (short, field) = shortened(message);
    let first = match message {
        Message::Invite(_) => "header",
        _ => "attempt",
    };
    let required = [&payload[..], &[252, 0]].concat();
    let mut all = vec![
        one(number, &[], first),
        one(number, &short, field),
        one(number, &payload[..payload.len() - 1], "TLV length"),
        one(number, &required, "tlv"),
        one(UNKNOWN, &payload, "message"),
    ];
    if matches!(message, Message::PartialSigs(_) | Message::NodeSigs(_)) {
        // As many parts as a message may have, all of them full: more than it may be long.
        let count = MAX_MESSAGE.div_ceil(MAX_PIECE) as u16;
        all.push((
            (0..count).map(|index| part(index, count)).collect(),
            "length",
        ));
    }
    all
}

/// Says every message of `who` in a damaged way.
fn instead(who: Side) -> Rule {
    Box::new(move |speaker, message| match message.factory() {
        None | Some(Message::Refusal(_) | Message::Seek(_)) => vec![message],
        Some(said) if speaker == who => {
            let (short, _) = shortened(&said);
            vec![tap::Message::raw(said.number(), &short)]
        }
        Some(_) => vec![message],
    })
}

fn is_malformed(message: &Message) -> bool {
    let Message::Refusal(Refusal { code, .. }) = message else {
        return false;
    };
    *code == RefusalCode::Malformed
}

/// The fields one side said it could not read.
fn unreadable(heard: &[Message]) -> Vec<String> {
    let refusals = heard.iter().filter(|it| is_malformed(it));
    let fields = refusals.filter_map(|it| match it {
        Message::Refusal(refusal) => Some(refusal.field.clone()),
        _ => None,
    });
    fields.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_message_are_refused_by_name_and_change_nothing() {
    let network = TestNetwork::start(2).await;
    let tap = network.tap(0).await;
    // In place of what belongs there: the attempt fails, no coin moves or stays locked.
    for (cheat, victim, field) in [
        (Side::Lsp, Side::Member, "round_seconds"),
        (Side::Member, Side::Lsp, "nonces"),
    ] {
        let refusals = attempt(&network, &tap, "damaged bytes", instead(cheat)).await;
        let mut answers = refusals.iter().filter(|it| it.0 == victim);
        let answer = answers.next().map(|it| (it.1, it.2.as_str()));
        assert_eq!(answer, Some((RefusalCode::Malformed, field)));
    }
    // Before what belongs there: it is read as if nothing had been said. Who says what it must is
    // not told that it was damaged.
    let expected = Arc::new(Mutex::new([Vec::new(), Vec::new()]));
    let said = Arc::clone(&expected);
    let earlier = [Side::Member, Side::Lsp].map(|who| tap.heard_of_factories(who).len());
    tap.set_rule(Box::new(move |who, message| match message.factory() {
        Some(refusal) if is_malformed(&refusal) => Vec::new(),
        Some(Message::Seek(_)) | None => vec![message],
        Some(honest) => {
            let mut all = Vec::new();
            for (bytes, field) in damaged(&honest) {
                said.lock().unwrap()[who as usize].push(field);
                all.extend(bytes);
            }
            all.push(message);
            all
        }
    }));
    honest(network).await;
    let [by_member, by_lsp] = [Side::Member, Side::Lsp].map(|who| {
        let heard = tap.heard_of_factories(who);
        heard[earlier[who as usize]..].to_vec()
    });
    let [of_member, of_lsp] = &*expected.lock().unwrap();
    assert_eq!(unreadable(&by_lsp), *of_member);
    assert_eq!(unreadable(&by_member), *of_lsp);
    assert!(of_member.contains(&"length") && of_lsp.contains(&"length"));
    // Nobody was moved to say anything twice, or anything else.
    let numbers = |heard: &[Message]| -> Vec<u16> {
        let honest = heard.iter().filter(|it| !is_malformed(it));
        honest.map(Message::number).filter(|it| *it != 1).collect()
    };
    assert_eq!(numbers(&by_member), [3, 6, 13, 9, 11]);
    assert_eq!(numbers(&by_lsp), [2, 5, 7, 8, 10]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_parts_without_end_is_hung_up_on_and_comes_back() {
    let network = TestNetwork::start(2).await;
    let tap = network.tap(0).await;
    for (who, victim) in [(Side::Member, Side::Lsp), (Side::Lsp, Side::Member)] {
        let connections = tap.heard(victim, INIT).len();
        let mut said = 0;
        network
            .wait("the endless message to be hung up on", async || {
                // The next part, once the last one was answered.
                let answered = unreadable(&tap.heard_of_factories(victim)).len();
                if answered == usize::from(said) && tap.say(who, part(said, u16::MAX)) {
                    said += 1;
                }
                let back = |side| tap.heard(side, INIT).len() > connections;
                back(who) && back(victim)
            })
            .await;
        let heard = tap.heard_of_factories(victim);
        let told = unreadable(&heard);
        assert_eq!(told.len(), PATIENCE);
        assert_eq!(told[0], "length", "it is known from the first part on");
        assert!(told[1..].iter().all(|field| *field == "part"), "{told:?}");
    }
    honest(network).await;
}
