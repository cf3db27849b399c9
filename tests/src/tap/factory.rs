//! The factory protocol's messages as the tap sees them. In tests none is so long that it comes in
//! parts.

use superscalar_factory::message::Message as FactoryMessage;
use superscalar_sdk::hosting::{FACTORY_MESSAGE_TYPE, PROTOCOL_ID};

use super::{Message, Rule, Side};

/// What is made of a factory message: a rule for those only.
pub type FactoryRule = Box<dyn FnMut(FactoryMessage) -> Vec<FactoryMessage> + Send>;

impl Message {
    /// The factory message that this is, if it is one.
    pub fn factory(&self) -> Option<FactoryMessage> {
        if self.kind != FACTORY_MESSAGE_TYPE {
            return None;
        }
        let rest = self.body.strip_prefix(&PROTOCOL_ID)?;
        let (number, payload) = rest.split_first_chunk()?;
        FactoryMessage::from_parts(u16::from_be_bytes(*number), payload).ok()
    }

    /// A factory message on the wire.
    pub fn of_factory(message: &FactoryMessage) -> Message {
        Message::raw(message.number(), &message.payload())
    }

    /// The same with any bytes.
    pub fn raw(number: u16, payload: &[u8]) -> Message {
        let number = number.to_be_bytes();
        Message {
            kind: FACTORY_MESSAGE_TYPE,
            body: [&PROTOCOL_ID, &number[..], payload].concat(),
        }
    }
}

/// `who` cheats in what it says of factories, and in nothing else.
pub fn cheating(who: Side, mut cheat: FactoryRule) -> Rule {
    Box::new(move |speaker, message| match message.factory() {
        Some(said) if speaker == who => cheat(said).iter().map(Message::of_factory).collect(),
        _ => vec![message],
    })
}
