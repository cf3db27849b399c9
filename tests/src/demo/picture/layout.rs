//! Where everything stands, in pixels; no two boxes overlap.

use super::{Below, Branch, Output, Picture, Shown};

/// Width of every box.
pub(super) const BOX_WIDTH: u32 = 148;
const BOX_HEIGHT: u32 = 56;
const SMALL_HEIGHT: u32 = 26;
const COLUMN: u32 = 180;
const ROW: u32 = 70;
const LEFT: u32 = 40;
const TOP: u32 = 132;
const BOTTOM: u32 = 84;
/// A distribution hangs this far below its kickoff.
const BACKSTOP_GAP: u32 = 12;

/// All boxes and lines of a picture.
#[derive(Debug)]
pub struct Layout<'a> {
    /// Of the whole.
    pub width: u32,
    /// Of the whole.
    pub height: u32,
    /// In drawing order.
    pub boxes: Vec<Box<'a>>,
    /// Between them, below them.
    pub lines: Vec<Line>,
}

/// A rectangle.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// Left edge.
    pub x: u32,
    /// Upper edge.
    pub y: u32,
    /// Height; the width is always the same.
    pub height: u32,
}

/// Something drawn as a box.
#[derive(Debug, Clone, Copy)]
pub enum Box<'a> {
    /// A transaction.
    Transaction(Place, &'a Shown),
    /// A distribution, which nobody needs while the LSP lives.
    Backstop(Place, &'a Shown),
    /// An output of a leaf.
    Output(Place, &'a Output),
}

impl Box<'_> {
    /// Where it stands.
    pub fn place(&self) -> Place {
        match self {
            Box::Transaction(place, _) | Box::Backstop(place, _) | Box::Output(place, _) => *place,
        }
    }
}

/// From the right edge of a box to the left edge of another, or downwards to a backstop.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    /// Start.
    pub from: (u32, u32),
    /// End.
    pub to: (u32, u32),
    /// Whether a transaction on chain made it real.
    pub on_chain: bool,
}

impl Place {
    fn middle(&self) -> u32 {
        self.y + self.height / 2
    }

    fn right(&self) -> (u32, u32) {
        (self.x + BOX_WIDTH, self.middle())
    }

    fn left(&self) -> (u32, u32) {
        (self.x, self.middle())
    }
}

impl<'a> Layout<'a> {
    /// Lays a picture out.
    pub fn of(picture: &'a Picture) -> Layout<'a> {
        let mut layout = Layout {
            width: 0,
            height: 0,
            boxes: Vec::new(),
            lines: Vec::new(),
        };
        let mut rows = 0;
        let root = layout.branch(&picture.root, 1, &mut rows);
        let funding = column(0, root.middle(), BOX_HEIGHT);
        layout.line(funding, root, picture.root.kickoff.block.is_some());
        layout
            .boxes
            .push(Box::Transaction(funding, &picture.funding));
        let edge = |it: &Box<'_>| (it.place().x + BOX_WIDTH, it.place().y + it.place().height);
        layout.width = layout.boxes.iter().map(|it| edge(it).0).max().unwrap_or(0) + LEFT;
        layout.height = layout.boxes.iter().map(|it| edge(it).1).max().unwrap_or(0) + BOTTOM;
        layout
    }

    /// Places a node and all below it; gives the place of its kickoff.
    fn branch(&mut self, branch: &'a Branch, at: u32, rows: &mut u32) -> Place {
        let state_column = at + 1;
        let first_row = *rows;
        let targets: Vec<(Place, bool)> = match &branch.below {
            Below::Branches(branches) => branches
                .iter()
                .map(|it| (self.branch(it, at + 2, rows), it.kickoff.block.is_some()))
                .collect(),
            Below::Outputs(outputs) => outputs
                .iter()
                .map(|it| (self.output(it, at + 2, rows), it.on_chain))
                .collect(),
        };
        // A leaf of one output still needs room for its distribution.
        *rows = (*rows).max(first_row + 2);
        let centre = match (targets.first(), targets.last()) {
            (Some((first, _)), Some((last, _))) => (first.middle() + last.middle()) / 2,
            _ => row(first_row) + BOX_HEIGHT / 2,
        };
        let kickoff = column(at, centre, BOX_HEIGHT);
        let state = column(state_column, centre, BOX_HEIGHT);
        for (target, on_chain) in targets {
            self.line(state, target, on_chain);
        }
        self.line(kickoff, state, branch.state.block.is_some());
        self.boxes.push(Box::Transaction(kickoff, &branch.kickoff));
        self.boxes.push(Box::Transaction(state, &branch.state));
        if let Some(distribution) = &branch.distribution {
            let place = Place {
                x: state.x,
                y: state.y + BOX_HEIGHT + BACKSTOP_GAP,
                height: SMALL_HEIGHT,
            };
            self.line(kickoff, place, distribution.block.is_some());
            self.boxes.push(Box::Backstop(place, distribution));
        }
        kickoff
    }

    fn output(&mut self, output: &'a Output, at: u32, rows: &mut u32) -> Place {
        let height = match output.is_channel {
            true => BOX_HEIGHT,
            false => SMALL_HEIGHT + 12,
        };
        let place = column(at, row(*rows) + BOX_HEIGHT / 2, height);
        *rows += 1;
        self.boxes.push(Box::Output(place, output));
        let mut last = place;
        for (further, shown) in (at + 1..).zip(&output.then) {
            let next = column(further, place.middle(), BOX_HEIGHT);
            self.line(last, next, shown.block.is_some());
            self.boxes.push(Box::Transaction(next, shown));
            last = next;
        }
        place
    }

    fn line(&mut self, from: Place, to: Place, on_chain: bool) {
        self.lines.push(Line {
            from: from.right(),
            to: to.left(),
            on_chain,
        });
    }
}

fn row(index: u32) -> u32 {
    TOP + index * ROW
}

fn column(index: u32, middle: u32, height: u32) -> Place {
    Place {
        x: LEFT + index * COLUMN,
        y: middle - height / 2,
        height,
    }
}
