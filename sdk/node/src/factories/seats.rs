//! Factories and places as they stand, for the application.

use bitcoin::Amount;
use bitcoin::secp256k1::PublicKey;
use superscalar_factory::coordinator::Coordinator;
use superscalar_factory::effect::SlotRef;
use superscalar_factory::epoch::EpochStage;
use superscalar_factory::member::Member;
use superscalar_factory::message::Invite;
use superscalar_factory::sale::Stage;
use superscalar_factory::shape::Odometer;
use superscalar_factory::stock::StockChain;
use superscalar_factory::tree::Cut;

use super::bridge;
use super::engine::Engine;
use super::info::{FactoryInfo, SeatInfo};

impl Engine {
    pub(super) fn member_info(&self, role: &Member) -> FactoryInfo {
        let invite = role.invite();
        let header = &invite.header;
        let tree = role.path().map(|path| &path.tree);
        let cut = role.cut();
        let seat = self.seat(invite, role.slot(), role.lsp(), cut, role.stock_chain());
        FactoryInfo {
            factory: bridge::name(&role.attempt()),
            phase: role.phase().to_owned(),
            ended: role.ended().map(|code| code.to_string()),
            damage: None,
            active: role.is_active(),
            expiry: header.expiry,
            exit_delay_blocks: header.timing.exit_delay(header.shape.layers()),
            epoch: epoch(invite, role.version()),
            funding: tree.map(|tree| tree.funding.to_string()),
            funding_sat: tree.map(|tree| tree.funding_output.value.to_sat()),
            tree_feerate: header.tree_feerate,
            seats: vec![SeatInfo {
                sale: role.sale_stage().map(stage),
                moving: role.epoch_stage().map(moving),
                most_msat: role.limbo_msat(),
                ..seat
            }],
        }
    }

    pub(super) fn coordinator_info(&self, role: &Coordinator) -> FactoryInfo {
        let tree = role.built().map(|built| &built.tree);
        let seats = role.invites().iter().zip(role.peers()).zip(role.places());
        let seats = seats.map(|((invite, peer), place)| {
            let chain = role.stock_chain(place.slot);
            self.seat(invite, place, *peer, role.cut(place.slot), chain.as_ref())
        });
        let header = role.invites().first().map(|invite| &invite.header);
        let newest = role.places().max_by_key(|place| role.version(place.slot));
        let newest = newest.and_then(|place| {
            let invite = role.invites().get(usize::from(place.slot))?;
            Some(epoch(invite, role.version(place.slot)))
        });
        FactoryInfo {
            factory: bridge::name(&role.attempt()),
            phase: role.phase().to_owned(),
            ended: role.ended().map(|code| code.to_string()),
            damage: None,
            active: role.is_active(),
            expiry: header.map_or(0, |it| it.expiry),
            exit_delay_blocks: header.map_or(0, |it| it.timing.exit_delay(it.shape.layers())),
            epoch: newest.unwrap_or_default(),
            funding: tree.map(|tree| tree.funding.to_string()),
            funding_sat: tree.map(|tree| tree.funding_output.value.to_sat()),
            tree_feerate: header.map_or(0, |it| it.tree_feerate),
            seats: seats.collect(),
        }
    }

    fn seat(
        &self,
        invite: &Invite,
        place: SlotRef,
        peer: PublicKey,
        cut: Option<Cut>,
        stock: Option<&StockChain>,
    ) -> SeatInfo {
        let (capacity, stock_sat) = match &cut {
            None => (invite.capacity, invite.stock),
            Some(Cut::Channel(cut)) => (cut.capacity, cut.stock),
            Some(_) => (Amount::ZERO, Amount::ZERO),
        };
        let live = self.live_channels(&place).into_iter();
        let mut leafs = live.filter(|id| !id.is_sold());
        let entry = leafs.find_map(|id| self.parts.host.slot(&id));
        let peer = peer.to_string();
        let seat = SeatInfo {
            version: self.version_of(&place).unwrap_or(0),
            channel: entry.map(|entry| entry.channel.outpoint.to_string()),
            ..SeatInfo::new(place.slot, peer, capacity.to_sat(), stock_sat.to_sat())
        };
        seat.with_stock(stock)
    }
}

fn moving(stage: EpochStage) -> String {
    match stage {
        EpochStage::Stored => "stored",
        EpochStage::Committed => "committed",
        EpochStage::Switching => "switching",
        EpochStage::Guarding => "guarding",
        _ => "preparing",
    }
    .to_owned()
}

fn stage(stage: Stage) -> String {
    match stage {
        Stage::Signed => "signed",
        Stage::Unpaid => "unpaid",
        _ => "pending",
    }
    .to_owned()
}

/// The version of a place's path, and the last there can be.
fn epoch(invite: &Invite, version: u32) -> String {
    let header = &invite.header;
    let topology = header.shape.topology(usize::from(invite.members));
    let nodes = topology.map_or(0, |it| it.path(invite.slot).len());
    let states = Odometer::at(header.timing.states, vec![0; nodes]);
    format!("{version}/{}", states.versions().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use bitcoin::secp256k1::{Secp256k1, SecretKey};
    use bitcoin::{Network, ScriptBuf};
    use superscalar_factory::shape::Shape;
    use superscalar_factory::terms::{FeeRules, Header, Instance, PROTOCOL_VERSION, TimeoutPolicy};
    use superscalar_factory::timing::Timing;

    use super::*;

    fn invite(states: u8, shape: Shape, members: u16) -> Invite {
        let secret = SecretKey::from_slice(&[1; 32]).unwrap();
        let header = Header {
            instance: Instance([7; 32]),
            attempt: 0,
            version: PROTOCOL_VERSION,
            network: Network::Regtest,
            lsp_key: PublicKey::from_secret_key(&Secp256k1::new(), &secret),
            lsp_payout: ScriptBuf::new(),
            timing: Timing {
                states,
                ..Timing::mainnet(shape.layers())
            },
            shape,
            expiry: 5_000,
            tree_feerate: 10,
            policy: TimeoutPolicy::MembersReclaim,
            fee_rules: FeeRules::OperatorKeeps,
        };
        Invite {
            header,
            members,
            slot: 0,
            capacity: Amount::ZERO,
            push_msat: 0,
            stock: Amount::ZERO,
            price: Amount::ZERO,
            round_seconds: 60,
        }
    }

    /// Acceptance "Odometer": of sixteen versions the last is number 15.
    #[test]
    fn an_epoch_is_shown_as_its_version_of_the_last() {
        let sixteen = invite(4, Shape::two_layers(4), 4);
        for (version, shown) in [(0, "0/15"), (7, "7/15"), (8, "8/15"), (15, "15/15")] {
            assert_eq!(epoch(&sixteen, version), shown);
        }
        assert_eq!(epoch(&invite(2, Shape::two_layers(4), 4), 1), "1/3");
        assert_eq!(epoch(&invite(2, Shape::binary(8), 8), 1), "1/15");
        // Of one leaf there is one node, whatever the shape allows.
        assert_eq!(epoch(&invite(2, Shape::two_layers(4), 2), 1), "1/1");
    }
}
