//! One connection between the LSP and each member, in order both ways, as BOLT8 is. A connection
//! that breaks loses what is on its way; what is on two connections arrives in any order.

use std::collections::VecDeque;

use superscalar_factory::effect::ChannelRef;
use superscalar_factory::wire::{Assembler, Frame};

use crate::channel::Talk;

/// What travels.
#[derive(Debug, Clone)]
pub(crate) enum Packet {
    /// Of the factory protocol. `Origin` says whether its sender meant to deceive.
    Factory(Frame, Origin),
    /// Of the channel layer.
    Channel(ChannelRef, Talk),
}

/// Whether a frame is what its sender's role said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    Role,
    Forged,
}

/// Which end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Lsp,
    Wallet,
}

/// The connection of one member.
#[derive(Debug, Default)]
pub(crate) struct Link {
    pub(crate) up: bool,
    to_lsp: VecDeque<Packet>,
    to_wallet: VecDeque<Packet>,
    at_lsp: Assembler,
    at_wallet: Assembler,
}

impl Link {
    pub(crate) fn queue(&mut self, to: End) -> &mut VecDeque<Packet> {
        match to {
            End::Lsp => &mut self.to_lsp,
            End::Wallet => &mut self.to_wallet,
        }
    }

    pub(crate) fn waiting(&self, to: End) -> usize {
        match to {
            End::Lsp => self.to_lsp.len(),
            End::Wallet => self.to_wallet.len(),
        }
    }

    pub(crate) fn assembler(&mut self, at: End) -> &mut Assembler {
        match at {
            End::Lsp => &mut self.at_lsp,
            End::Wallet => &mut self.at_wallet,
        }
    }

    /// Everything on its way is lost.
    pub(crate) fn cut(&mut self) {
        *self = Link::default();
    }

    pub(crate) fn connect(&mut self) {
        self.up = true;
    }
}
