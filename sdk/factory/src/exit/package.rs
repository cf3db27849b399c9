//! What a wallet exports so that somebody else, or a tool, can leave for it.
//!
//! A package holds signed paths and nothing else: no key, and no commitment of a channel, because
//! an old commitment is a revoked one as soon as the next payment is made. Whoever has it can bring
//! the leaves on chain, and can take nothing. What decodes has been verified to the last signature.

use bitcoin::Network;

use super::SignedPath;
use crate::codec::{Decode, DecodeError, Encode, Reader, write_big_size};

/// Written where nothing was sold: paths without a list of sales.
const WITHOUT_SALES: u16 = 1;
/// Written where something was.
const WITH_SALES: u16 = 2;
/// The most paths of one package.
const MAX_PATHS: u64 = 4_096;

/// One way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackagedPath {
    /// No block below this height holds anything of the path.
    pub from_height: u32,
    /// Everything to publish.
    pub path: SignedPath,
}

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

    fn has_sales(&self) -> bool {
        self.paths.iter().any(|it| !it.path.sales().is_empty())
    }

    /// The chain all of them belong to.
    pub fn network(&self) -> Network {
        self.paths[0].path.header().network
    }
}

impl Encode for ExitPackage {
    fn encode(&self, out: &mut Vec<u8>) {
        let sold = self.has_sales();
        let version = if sold { WITH_SALES } else { WITHOUT_SALES };
        version.encode(out);
        write_big_size(self.paths.len() as u64, out);
        for it in &self.paths {
            it.from_height.encode(out);
            match sold {
                true => it.path.encode(out),
                false => it.path.encode_tree(out),
            }
        }
    }
}

impl Decode for ExitPackage {
    fn decode(r: &mut Reader<'_>, _field: &'static str) -> Result<Self, DecodeError> {
        let version = u16::decode(r, "version")?;
        let read = match version {
            WITHOUT_SALES => SignedPath::decode_tree,
            WITH_SALES => SignedPath::decode,
            typ => {
                return Err(DecodeError::UnknownType {
                    what: "exit package",
                    typ: typ.into(),
                });
            }
        };
        let field = "paths";
        let count = r.length(MAX_PATHS, field)?;
        let mut paths = Vec::new();
        for _ in 0..count {
            paths.push(PackagedPath {
                from_height: u32::decode(r, "from_height")?,
                path: read(r, "path")?,
            });
        }
        let package = ExitPackage::new(paths).ok_or(DecodeError::Invalid { field })?;
        // One encoding per value.
        match package.has_sales() == (version == WITH_SALES) {
            true => Ok(package),
            false => Err(DecodeError::Invalid { field }),
        }
    }
}
