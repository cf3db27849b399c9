//! A factory of four, one member out.

use bitcoin::hashes::Hash as _;

use super::layout::BOX_WIDTH;
use super::*;

fn shown(name: &str, block: Option<u32>) -> Shown {
    Shown {
        name: name.to_owned(),
        txid: Some(Txid::hash(name.as_bytes())),
        amount: Amount::from_sat(1_234_567),
        block,
        delay: 6,
    }
}

fn branch(name: &str, blocks: [Option<u32>; 2], below: Below) -> Branch {
    Branch {
        kickoff: shown(&format!("kickoff {name}"), blocks[0]),
        state: shown(&format!("state {name}"), blocks[1]),
        distribution: Some(shown(&format!("distribution {name}"), None)),
        below,
    }
}

fn leaf_outputs(names: [&str; 2], on_chain: bool) -> Below {
    let mut outputs = Vec::new();
    for name in names {
        let then = match (on_chain, outputs.is_empty()) {
            (true, true) => vec![shown("commitment", Some(115)), shown("sweep", Some(259))],
            _ => Vec::new(),
        };
        outputs.push(Output {
            name: format!("channel {name}"),
            amount: Amount::from_sat(500_000),
            on_chain,
            is_channel: true,
            then,
        });
    }
    for name in names {
        outputs.push(Output {
            name: format!("stock {name}"),
            amount: Amount::from_sat(100_000),
            on_chain,
            is_channel: false,
            then: Vec::new(),
        });
    }
    Below::Outputs(outputs)
}

fn four() -> Picture {
    let left = branch(
        "1",
        [Some(108), Some(114)],
        leaf_outputs(["Alice", "Bob"], true),
    );
    let right = branch("2", [None, None], leaf_outputs(["Carol", "Dave"], false));
    Picture {
        title: "A factory of <four> & one way out".to_owned(),
        subtitle: "What is on the chain".to_owned(),
        funding: shown("funding", Some(101)),
        root: branch(
            "0",
            [Some(102), Some(108)],
            Below::Branches(vec![left, right]),
        ),
    }
}

#[test]
fn no_two_boxes_overlap_and_all_are_inside() {
    let picture = four();
    let layout = Layout::of(&picture);
    assert_eq!(layout.boxes.len(), 1 + 3 * 3 + 8 + 2);
    let places: Vec<Place> = layout.boxes.iter().map(layout::Box::place).collect();
    for (index, a) in places.iter().enumerate() {
        assert!(a.x + BOX_WIDTH < layout.width && a.y + a.height < layout.height);
        for b in &places[index + 1..] {
            let apart_x = a.x + BOX_WIDTH <= b.x || b.x + BOX_WIDTH <= a.x;
            let apart_y = a.y + a.height <= b.y || b.y + b.height <= a.y;
            assert!(apart_x || apart_y, "{a:?} {b:?}");
        }
    }
}

#[test]
fn what_is_on_chain_is_drawn_so_and_nothing_else() {
    let drawn = svg(&four());
    let count = |words: &str| drawn.matches(words).count();
    // Funding, four of the path, commitment, sweep, and one in the legend.
    assert_eq!(count("class=\"tx on\""), 7 + 1);
    assert_eq!(count("class=\"tx off\""), 2 + 1);
    assert_eq!(count("class=\"backstop off\""), 3);
    assert_eq!(count("class=\"channel on\""), 2 + 1);
    assert_eq!(count("class=\"channel off\""), 2);
    assert_eq!(count("class=\"badge\""), 7);
    for words in [
        "block 101",
        "block 259",
        "channel Alice",
        "stock Dave",
        "1,234,567 sat",
    ] {
        assert!(drawn.contains(words), "{words}");
    }
}

#[test]
fn the_drawing_is_well_formed() {
    let drawn = svg(&four());
    assert!(drawn.contains("&lt;four&gt; &amp; one"));
    let mut open = Vec::new();
    for piece in drawn.split('<').skip(1) {
        let (tag, _) = piece.split_once('>').unwrap();
        let name = |tag: &str| tag.split_whitespace().next().unwrap().to_owned();
        match tag.strip_prefix('/') {
            Some(closed) => assert_eq!(open.pop(), Some(name(closed))),
            None if tag.ends_with('/') => {}
            None => open.push(name(tag)),
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
    }
    assert!(open.is_empty());
}
