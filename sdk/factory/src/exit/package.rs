//! What a wallet exports so that somebody else, or a tool, can leave for it.
//!
//! A package holds signed paths and nothing else: no key, and no commitment of a channel, because
//! an old commitment is a revoked one as soon as the next payment is made. Whoever has it can bring
//! the leaves on chain, and can take nothing. What decodes has been verified to the last signature.

use bitcoin::Network;

use super::SignedPath;
use crate::codec::{Decode, DecodeError, Encode, Reader, fields};

/// The version written, and the only one read.
const VERSION: u16 = 1;

/// One way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackagedPath {
    /// No block below this height holds anything of the path.
    pub from_height: u32,
    /// Everything to publish.
    pub path: SignedPath,
}

fields!(PackagedPath { from_height, path });

/// The ways out of every factory of a wallet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExitPackage {
    paths: Vec<PackagedPath>,
}

impl ExitPackage {
    /// `None` without a path, or with paths of different networks.
    pub fn new(paths: Vec<PackagedPath>) -> Option<ExitPackage> {
        let network = paths.first()?.path.header().network;
        let mut all = paths.iter();
        let same = all.all(|it| it.path.header().network == network);
        same.then_some(ExitPackage { paths })
    }

    /// Never empty.
    pub fn paths(&self) -> &[PackagedPath] {
        &self.paths
    }

    /// The chain all of them belong to.
    pub fn network(&self) -> Network {
        self.paths[0].path.header().network
    }
}

impl Encode for ExitPackage {
    fn encode(&self, out: &mut Vec<u8>) {
        VERSION.encode(out);
        self.paths.encode(out);
    }
}

impl Decode for ExitPackage {
    fn decode(r: &mut Reader<'_>, _field: &'static str) -> Result<Self, DecodeError> {
        match u16::decode(r, "version")? {
            VERSION => {}
            typ => {
                return Err(DecodeError::UnknownType {
                    what: "exit package",
                    typ: typ.into(),
                });
            }
        }
        let field = "paths";
        let paths = Vec::<PackagedPath>::decode(r, field)?;
        ExitPackage::new(paths).ok_or(DecodeError::Invalid { field })
    }
}
