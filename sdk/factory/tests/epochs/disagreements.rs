//! What the two sides, or two members, do not agree on, and what is said out of place: it ends the
//! epoch or changes nothing.

use superscalar_factory::effect::Event;
use superscalar_factory::message::{Message, RefusalCode};

use crate::refusals::{Change, begin, ready, refusals};
use crate::world::Party;
use crate::{agree, records};

/// Balances the two sides do not agree on end it, and the LSP is told whose they are.
#[test]
fn other_balances_end_it() {
    for change in [
        (|message| {
            if let Message::EpochReady(body) = message {
                body.balances[0].1 += 1;
            }
        }) as Change,
        |message| {
            if let Message::EpochReady(body) = message {
                body.balances.pop();
            }
        },
        |message| {
            if let Message::EpochReady(body) = message {
                let first = body.balances[0];
                body.balances.push(first);
            }
        },
    ] {
        let mut world = ready(false);
        begin(&mut world, Party::Member(0), change);
        let ended = world.events.iter().find_map(|(who, event)| match event {
            Event::EpochEnded { code, at_fault, .. } if *who == Party::Lsp => {
                Some((*code, at_fault.clone()))
            }
            _ => None,
        });
        assert_eq!(ended, Some((RefusalCode::Channel, vec![0])));
        for slot in [0, 1] {
            agree(&world, slot, 0);
        }
        world.merge(0).unwrap();
        agree(&world, 0, 1);
    }
}

/// Members that are told of different leaves sign for nothing: what is below commits to all of them.
#[test]
fn other_contents_for_one_member_fit_nobody() {
    let mut world = ready(true);
    begin(&mut world, Party::Lsp, |message| {
        if let Message::EpochTerms(body) = message {
            // The leaf of slots 2 and 3, which slots 0 and 1 know the hash of only.
            if body.leaf_outputs[0].value.to_sat() == 520_000 {
                body.contents[1] = [7; 32];
            }
        }
    });
    let wanted = (Party::Lsp, RefusalCode::Signature, "partials".to_owned());
    assert!(refusals(&world).contains(&wanted), "{:?}", refusals(&world));
    assert_eq!(world.lsp.as_ref().unwrap().version(0), 1);
}

/// What does not belong to what is under way is refused, whoever says it.
#[test]
fn messages_out_of_place_are_refused() {
    let mut world = ready(false);
    world.merge(0).unwrap();
    let said: Vec<(Party, Message)> = world
        .log
        .iter()
        .filter(|(_, message)| message.is_of_epoch())
        .cloned()
        .collect();
    let before: Vec<usize> = [Party::Lsp, Party::Member(0), Party::Member(1)]
        .map(|who| records(&world, who))
        .into();
    for (from, message) in &said {
        // Everything once more, also to those it was not meant for.
        for slot in 0..4 {
            match from {
                Party::Lsp => world.hand_over(Party::Lsp, Party::Member(slot), message.clone()),
                Party::Member(_) => {
                    world.hand_over(Party::Member(slot), Party::Lsp, message.clone());
                }
            }
        }
        world.deliver();
    }
    let after: Vec<usize> = [Party::Lsp, Party::Member(0), Party::Member(1)]
        .map(|who| records(&world, who))
        .into();
    assert_eq!(before, after);
    agree(&world, 0, 1);
    agree(&world, 1, 1);
    agree(&world, 2, 0);
}
