//! A Lightning node's address as people exchange it.

use std::fmt;
use std::str::FromStr;

use bitcoin::secp256k1::PublicKey;

use crate::towers::TowerAddress;

/// `node_id@host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LspUri {
    pub(crate) node_id: PublicKey,
    pub(crate) address: String,
}

/// Why a text is no node's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// No `@`, or no `:` behind it.
    #[error("expected node_id@host:port")]
    Form,
    /// The part before the `@` is no public key.
    #[error("the node id is not a public key")]
    NodeId,
    /// The part behind the last `:` is no port.
    #[error("the port is not a number between 1 and 65535")]
    Port,
}

impl LspUri {
    /// The node id, hex.
    pub fn node_id(&self) -> String {
        self.node_id.to_string()
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn tower(&self) -> TowerAddress {
        TowerAddress {
            node_id: self.node_id,
            address: self.address.clone(),
        }
    }
}

impl FromStr for LspUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<LspUri, UriError> {
        let (node_id, address) = text.trim().split_once('@').ok_or(UriError::Form)?;
        let (host, port) = address.rsplit_once(':').ok_or(UriError::Form)?;
        if host.is_empty() {
            return Err(UriError::Form);
        }
        match port.parse::<u16>() {
            Ok(port) if port > 0 => {}
            _ => return Err(UriError::Port),
        }
        Ok(LspUri {
            node_id: node_id.parse().map_err(|_| UriError::NodeId)?,
            address: address.to_owned(),
        })
    }
}

impl fmt::Display for LspUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.node_id, self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";

    #[test]
    fn an_address_is_read_and_shown_the_same() {
        let text = format!("{KEY}@lsp.example:9735");
        assert_eq!(text.parse::<LspUri>().unwrap().to_string(), text);
    }

    #[test]
    fn a_bad_address_says_what_is_wrong() {
        let parse = |text: &str| text.parse::<LspUri>().unwrap_err();
        assert_eq!(parse("nonsense"), UriError::Form);
        assert_eq!(parse(&format!("{KEY}@host")), UriError::Form);
        assert_eq!(parse(&format!("{KEY}@:1")), UriError::Form);
        assert_eq!(parse("02ff@host:1"), UriError::NodeId);
        assert_eq!(parse(&format!("{KEY}@host:0")), UriError::Port);
        assert_eq!(parse(&format!("{KEY}@host:65536")), UriError::Port);
    }
}
