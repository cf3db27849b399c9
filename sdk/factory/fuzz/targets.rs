//! What the fuzzers run, also compiled into a test that replays the corpus: no bytes panic, and
//! whatever decodes encodes to bytes that decode to the same.

use superscalar_factory::codec::{Decode, Encode, Reader};
use superscalar_factory::coordinator::Coordinator;
use superscalar_factory::exit::package::ExitPackage;
use superscalar_factory::exit::{ChainFacts, Goal, plan};
use superscalar_factory::journal::Record;
use superscalar_factory::member::Member;
use superscalar_factory::message::Message;
use superscalar_factory::terms::{FactoryId, Header, Terms};
use superscalar_factory::tree::{Blueprint, PathFacts};
use superscalar_factory::wire::{self, Assembler, Frame};

/// `data` as frames of one peer: `submessage u16 ‖ length u16 ‖ payload`, again and again.
pub fn wire(data: &[u8]) {
    let mut reader = Reader::new(data);
    let mut assembler = Assembler::default();
    while let Some(frame) = frame(&mut reader) {
        let Ok(Some(message)) = assembler.receive(&frame) else {
            continue;
        };
        let mut again = Assembler::default();
        let mut arrived = None;
        for frame in wire::frames(&message) {
            arrived = again.receive(&frame).expect("own frames are read");
        }
        assert_eq!(arrived.as_ref(), Some(&message));
        assert_eq!(
            Message::from_parts(message.number(), &message.payload()).as_ref(),
            Ok(&message)
        );
    }
}

/// The corpus format of [`wire`].
pub fn frames(message: &Message) -> Vec<u8> {
    let mut data = Vec::new();
    for frame in wire::frames(message) {
        frame.submessage.encode(&mut data);
        (frame.payload.len() as u16).encode(&mut data);
        data.extend_from_slice(&frame.payload);
    }
    data
}

fn frame(reader: &mut Reader<'_>) -> Option<Frame> {
    let submessage = u16::decode(reader, "submessage").ok()?;
    let length = u16::decode(reader, "length").ok()?;
    let payload = reader.take(length.into(), "payload").ok()?.to_vec();
    Some(Frame {
        submessage,
        payload,
    })
}

/// `data` as a journal: `length u32 ‖ record`, again and again, replayed as either role.
pub fn journal(data: &[u8]) {
    let mut reader = Reader::new(data);
    let mut records = Vec::new();
    while let Ok(length) = u32::decode(&mut reader, "length") {
        let Ok(bytes) = reader.take(length as usize, "record") else {
            break;
        };
        let Ok(record) = Record::from_bytes(bytes, "Record") else {
            continue;
        };
        let again = Record::from_bytes(&record.to_bytes(), "Record");
        assert_eq!(again.as_ref(), Ok(&record));
        records.push(record);
    }
    if let Ok((mut member, _)) = Member::replay(&[1; 32], &records, 1_000) {
        use superscalar_factory::member::Input;
        member.handle(Input::Connected);
        member.handle(Input::ChannelHeld);
        if let Some(id) = member.next_channel() {
            member.handle(Input::BoughtHeld(id));
            member.handle(Input::BoughtGuarded(id));
            member.handle(Input::SalePaid(id));
            let randomness = [1; 32];
            member.handle(Input::SaleRandomness { id, randomness });
            member.handle(Input::BoughtLost(id));
        }
        if let Some(id) = member.moved_channel() {
            member.handle(Input::MovedHeld(id));
        }
        member.handle(Input::MovedGuarded {
            version: member.version(),
        });
        member.handle(Input::EpochRandomness([1; 32]));
        member.handle(Input::EpochTimedOut);
        if let Some(path) = member.signed_path() {
            path.expect("what a journal gives back fits together");
        }
        for (chain, _) in member.retired_stock() {
            assert!(chain.stocks().count() > 0);
        }
        member.handle(Input::TreeSeen);
        member.handle(Input::Height(u32::MAX));
        member.handle(Input::TimedOut);
    }
    if let Ok((mut lsp, _)) = Coordinator::replay(&[1; 32], &records, 1_000) {
        use superscalar_factory::coordinator::Input;
        for peer in lsp.peers().to_vec() {
            lsp.handle(Input::Connected(peer));
        }
        lsp.handle(Input::FundingConfirmed { height: 1_000 });
        for chain in lsp.stock_chains() {
            let sold = chain.links().last();
            assert!(sold.is_none_or(|sold| sold.link().is_signed(&sold.signature())));
        }
        let payment_hash = [1; 32];
        lsp.handle(Input::SalePaid { payment_hash });
        for slot in 0..lsp.peers().len() as u16 {
            if let Some(path) = lsp.signed_path(slot) {
                path.expect("what a journal gives back fits together");
            }
            let _ = lsp.next_epoch(slot);
        }
        lsp.handle(Input::EpochRandomness([1; 32]));
        lsp.handle(Input::EpochTimedOut);
        lsp.abandon_epoch();
        lsp.handle(Input::TreeSeen);
        lsp.handle(Input::Height(u32::MAX));
        lsp.handle(Input::TimedOut);
    }
}

/// The corpus format of [`journal`].
pub fn records(records: &[Record]) -> Vec<u8> {
    let mut data = Vec::new();
    for record in records {
        let bytes = record.to_bytes();
        (bytes.len() as u32).encode(&mut data);
        data.extend_from_slice(&bytes);
    }
    data
}

/// `data` as the terms of a factory, or as a header and the facts of one path: what decodes is
/// built, or refused.
pub fn terms(data: &[u8]) {
    let funding = Default::default();
    if let Ok(terms) = Terms::from_bytes(data, "Terms") {
        assert_eq!(
            Terms::from_bytes(&terms.to_bytes(), "Terms").as_ref(),
            Ok(&terms)
        );
        if let Ok(blueprint) = Blueprint::whole(&terms) {
            let tree = blueprint.tree(funding);
            if let Ok(tree) = tree {
                assert_eq!(tree.factory_id, FactoryId::new(terms.terms_id(), funding));
            }
        }
    }
    if let Ok((header, facts)) = <(Header, PathFacts)>::from_bytes(data, "path") {
        let again =
            <(Header, PathFacts)>::from_bytes(&(header.clone(), facts.clone()).to_bytes(), "path");
        assert_eq!(again.as_ref(), Ok(&(header.clone(), facts.clone())));
        if let Ok(blueprint) = Blueprint::path(&header, &facts) {
            let _ = blueprint.tree(funding);
        }
    }
}

/// `data` as the content of an exit package: what decodes is verified, and can be planned with.
pub fn package(data: &[u8]) {
    let Ok(package) = ExitPackage::from_bytes(data, "package") else {
        return;
    };
    assert_eq!(package.to_bytes(), data);
    for packaged in package.paths() {
        for goal in [Goal::Leave, Goal::Defend, Goal::Reclaim] {
            let _ = plan(&packaged.path, goal, &ChainFacts::default());
        }
    }
}
