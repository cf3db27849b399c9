//! The one byte encoding of this crate: what is hashed, journalled and sent is written with it.
//!
//! Integers are big-endian, lengths and TLV types are BOLT1 `BigSize`, TLV streams follow BOLT1
//! (strictly increasing types, unknown even types refused, unknown odd ones skipped). Decoding
//! never panics and never allocates more than the input is long; every error names its field.

use bitcoin::hashes::Hash as _;
use bitcoin::secp256k1::{PublicKey, XOnlyPublicKey, schnorr};
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut, Txid};

/// Why bytes could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The input ended inside `field`.
    #[error("input ends inside {field}")]
    Truncated {
        /// What was being read.
        field: &'static str,
    },
    /// `field` holds bytes that are no value of its type.
    #[error("{field} is not a valid value")]
    Invalid {
        /// What was being read.
        field: &'static str,
    },
    /// A required TLV is absent.
    #[error("{field} is missing")]
    Missing {
        /// The absent field.
        field: &'static str,
    },
    /// Bytes are left over after the last field of `what`.
    #[error("{count} bytes follow the end of {what}")]
    Trailing {
        /// The structure that was read.
        what: &'static str,
        /// How many bytes follow it.
        count: usize,
    },
    /// TLV types do not strictly increase (BOLT1).
    #[error("TLV type {typ} is out of order or repeated")]
    Order {
        /// The offending type.
        typ: u64,
    },
    /// An even TLV type this version does not know (BOLT1: it is not optional).
    #[error("unknown required TLV type {typ}")]
    UnknownEven {
        /// The offending type.
        typ: u64,
    },
    /// A number that has a shorter `BigSize` encoding (BOLT1).
    #[error("{field} is not minimally encoded")]
    NotMinimal {
        /// What was being read.
        field: &'static str,
    },
    /// More elements or bytes than the protocol allows.
    #[error("{field} has {len} elements, at most {max} are allowed")]
    TooLong {
        /// What was being read.
        field: &'static str,
        /// Announced length.
        len: u64,
        /// Greatest allowed length.
        max: u64,
    },
    /// The message or record type is not known.
    #[error("unknown {what} type {typ}")]
    UnknownType {
        /// "message" or "record".
        what: &'static str,
        /// The number found.
        typ: u64,
    },
}

impl DecodeError {
    /// The field that was wrong, or the structure where no field is known.
    pub fn field(&self) -> &'static str {
        match self {
            DecodeError::Truncated { field }
            | DecodeError::Invalid { field }
            | DecodeError::Missing { field }
            | DecodeError::NotMinimal { field }
            | DecodeError::TooLong { field, .. } => field,
            DecodeError::Trailing { what, .. } | DecodeError::UnknownType { what, .. } => what,
            DecodeError::Order { .. } | DecodeError::UnknownEven { .. } => "tlv",
        }
    }
}

/// A value with one canonical byte encoding.
pub trait Encode {
    /// Whether a reader finds the end of a value by itself. A TLV stream ends where the input
    /// does, so it stands last or behind its length.
    const SELF_DELIMITING: bool = true;

    /// Appends the encoding of `self` to `out`.
    fn encode(&self, out: &mut Vec<u8>);

    /// The encoding of `self` alone.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }
}

/// A value that can be read back from its encoding.
pub trait Decode: Encode + Sized {
    /// Reads one value and leaves the reader after it.
    fn decode(reader: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError>;

    /// Reads a value that must fill `bytes` exactly.
    fn from_bytes(bytes: &[u8], what: &'static str) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let value = Self::decode(&mut reader, what)?;
        reader.finish(what)?;
        Ok(value)
    }
}

/// A cursor over input bytes.
#[derive(Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// Whether every byte has been read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], DecodeError> {
        if self.rest.len() < len {
            return Err(DecodeError::Truncated { field });
        }
        let (head, rest) = self.rest.split_at(len);
        self.rest = rest;
        Ok(head)
    }

    /// All bytes that are left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// The next `N` bytes as an array.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, field)?);
        Ok(array)
    }

    /// A BOLT1 `BigSize`, minimally encoded.
    pub fn big_size(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        let (value, least) = match self.array::<1>(field)?[0] {
            0xfd => (u64::from(u16::from_be_bytes(self.array(field)?)), 0xfd),
            0xfe => (u64::from(u32::from_be_bytes(self.array(field)?)), 0x1_0000),
            0xff => (u64::from_be_bytes(self.array(field)?), 0x1_0000_0000),
            small => (u64::from(small), 0),
        };
        if value < least {
            return Err(DecodeError::NotMinimal { field });
        }
        Ok(value)
    }

    /// A length prefix of at most `max`, also bounded by what is left to read when every element
    /// takes at least one byte.
    pub fn length(&mut self, max: u64, field: &'static str) -> Result<usize, DecodeError> {
        let len = self.big_size(field)?;
        if len > max {
            return Err(DecodeError::TooLong { field, len, max });
        }
        if len > self.rest.len() as u64 {
            return Err(DecodeError::Truncated { field });
        }
        Ok(len as usize)
    }

    /// Refuses left-over bytes.
    pub fn finish(&self, what: &'static str) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            count => Err(DecodeError::Trailing { what, count }),
        }
    }
}

/// Appends a BOLT1 `BigSize`.
pub fn write_big_size(value: u64, out: &mut Vec<u8>) {
    match value {
        0..=0xfc => out.push(value as u8),
        0xfd..=0xffff => {
            out.push(0xfd);
            out.extend_from_slice(&(value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(0xfe);
            out.extend_from_slice(&(value as u32).to_be_bytes());
        }
        _ => {
            out.push(0xff);
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
}

/// Longest list any message or record may hold: far above 128 members times their transactions.
const MAX_LIST: u64 = 4096;
/// Longest byte string (a transaction, a script) any message or record may hold.
const MAX_BYTES: u64 = 1 << 20;

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl Encode for $t {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }
        }
        impl Decode for $t {
            fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
                Ok(<$t>::from_be_bytes(r.array(field)?))
            }
        }
    )*};
}
integers!(u8, u16, u32, u64, u128);

impl<const N: usize> Encode for [u8; N] {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
}
impl<const N: usize> Decode for [u8; N] {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        r.array(field)
    }
}

/// Length first; elements that do not show their own end have theirs before them.
impl<T: Encode> Encode for Vec<T> {
    fn encode(&self, out: &mut Vec<u8>) {
        write_big_size(self.len() as u64, out);
        for item in self {
            if T::SELF_DELIMITING {
                item.encode(out);
            } else {
                let bytes = item.to_bytes();
                write_big_size(bytes.len() as u64, out);
                out.extend_from_slice(&bytes);
            }
        }
    }
}
impl<T: Decode> Decode for Vec<T> {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        let len = r.length(MAX_LIST, field)?;
        let item = |_| {
            if T::SELF_DELIMITING {
                return T::decode(r, field);
            }
            let len = r.length(MAX_BYTES, field)?;
            T::from_bytes(r.take(len, field)?, field)
        };
        (0..len).map(item).collect()
    }
}

impl<T: Encode> Encode for Option<T> {
    const SELF_DELIMITING: bool = T::SELF_DELIMITING;

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            None => out.push(0),
            Some(value) => {
                out.push(1);
                value.encode(out);
            }
        }
    }
}
impl<T: Decode> Decode for Option<T> {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        match u8::decode(r, field)? {
            0 => Ok(None),
            1 => Ok(Some(T::decode(r, field)?)),
            _ => Err(DecodeError::Invalid { field }),
        }
    }
}

impl<A: Encode, B: Encode> Encode for (A, B) {
    const SELF_DELIMITING: bool = B::SELF_DELIMITING;

    fn encode(&self, out: &mut Vec<u8>) {
        const { assert!(A::SELF_DELIMITING) };
        self.0.encode(out);
        self.1.encode(out);
    }
}
impl<A: Decode, B: Decode> Decode for (A, B) {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        Ok((A::decode(r, field)?, B::decode(r, field)?))
    }
}

/// A UTF-8 text, length first.
impl Encode for String {
    fn encode(&self, out: &mut Vec<u8>) {
        write_big_size(self.len() as u64, out);
        out.extend_from_slice(self.as_bytes());
    }
}
impl Decode for String {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        let len = r.length(MAX_LIST, field)?;
        String::from_utf8(r.take(len, field)?.to_vec()).map_err(|_| DecodeError::Invalid { field })
    }
}

impl Encode for PublicKey {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.serialize());
    }
}
impl Decode for PublicKey {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        PublicKey::from_slice(&r.array::<33>(field)?).map_err(|_| DecodeError::Invalid { field })
    }
}

impl Encode for XOnlyPublicKey {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.serialize());
    }
}
impl Decode for XOnlyPublicKey {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        XOnlyPublicKey::from_slice(&r.array::<32>(field)?)
            .map_err(|_| DecodeError::Invalid { field })
    }
}

impl Encode for schnorr::Signature {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_ref());
    }
}
impl Decode for schnorr::Signature {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        schnorr::Signature::from_slice(&r.array::<64>(field)?)
            .map_err(|_| DecodeError::Invalid { field })
    }
}

/// Satoshi, refused above the 21 million coins that can exist.
impl Encode for Amount {
    fn encode(&self, out: &mut Vec<u8>) {
        self.to_sat().encode(out);
    }
}
impl Decode for Amount {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        let amount = Amount::from_sat(u64::decode(r, field)?);
        if amount > Amount::MAX_MONEY {
            return Err(DecodeError::Invalid { field });
        }
        Ok(amount)
    }
}

impl Encode for ScriptBuf {
    fn encode(&self, out: &mut Vec<u8>) {
        write_big_size(self.len() as u64, out);
        out.extend_from_slice(self.as_bytes());
    }
}
impl Decode for ScriptBuf {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        let len = r.length(MAX_BYTES, field)?;
        Ok(ScriptBuf::from_bytes(r.take(len, field)?.to_vec()))
    }
}

impl Encode for TxOut {
    fn encode(&self, out: &mut Vec<u8>) {
        self.value.encode(out);
        self.script_pubkey.encode(out);
    }
}
impl Decode for TxOut {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        Ok(TxOut {
            value: Amount::decode(r, field)?,
            script_pubkey: ScriptBuf::decode(r, field)?,
        })
    }
}

impl Encode for Txid {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_byte_array());
    }
}
impl Decode for Txid {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        Ok(Txid::from_byte_array(r.array(field)?))
    }
}

impl Encode for OutPoint {
    fn encode(&self, out: &mut Vec<u8>) {
        self.txid.encode(out);
        self.vout.encode(out);
    }
}
impl Decode for OutPoint {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        Ok(OutPoint {
            txid: Txid::decode(r, field)?,
            vout: u32::decode(r, field)?,
        })
    }
}

/// A transaction in Bitcoin's own encoding, length first.
impl Encode for Transaction {
    fn encode(&self, out: &mut Vec<u8>) {
        let bytes = bitcoin::consensus::serialize(self);
        write_big_size(bytes.len() as u64, out);
        out.extend_from_slice(&bytes);
    }
}
impl Decode for Transaction {
    fn decode(r: &mut Reader<'_>, field: &'static str) -> Result<Self, DecodeError> {
        let len = r.length(MAX_BYTES, field)?;
        bitcoin::consensus::deserialize(r.take(len, field)?)
            .map_err(|_| DecodeError::Invalid { field })
    }
}

/// Appends a field that others may follow.
pub(crate) fn encode_field<T: Encode>(value: &T, out: &mut Vec<u8>) {
    const { assert!(T::SELF_DELIMITING) };
    value.encode(out);
}

/// Implements [`Encode`] and [`Decode`] for a struct as the concatenation of its fields.
macro_rules! fields {
    ($name:ident { $($field:ident),* $(,)? }) => {
        impl $crate::codec::Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                $( $crate::codec::encode_field(&self.$field, out); )*
            }
        }
        impl $crate::codec::Decode for $name {
            fn decode(
                r: &mut $crate::codec::Reader<'_>,
                _field: &'static str,
            ) -> Result<Self, $crate::codec::DecodeError> {
                Ok($name { $( $field: $crate::codec::Decode::decode(r, stringify!($field))? ),* })
            }
        }
    };
}
pub(crate) use fields;

/// Declares a struct and implements [`Encode`] and [`Decode`] for it as a BOLT1 TLV stream in
/// which every field has an even type and is required.
macro_rules! tlv {
    (
        $(#[$meta:meta])*
        pub struct $name:ident { $( $(#[$fmeta:meta])* $typ:literal => $field:ident : $ty:ty ),* $(,)? }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub struct $name { $( $(#[$fmeta])* pub $field: $ty ),* }

        impl $crate::codec::Encode for $name {
            const SELF_DELIMITING: bool = false;

            #[allow(unused_variables)]
            fn encode(&self, out: &mut Vec<u8>) {
                $(
                    let value = $crate::codec::Encode::to_bytes(&self.$field);
                    $crate::codec::write_big_size($typ, out);
                    $crate::codec::write_big_size(value.len() as u64, out);
                    out.extend_from_slice(&value);
                )*
            }
        }
        impl $crate::codec::Decode for $name {
            fn decode(
                r: &mut $crate::codec::Reader<'_>,
                _field: &'static str,
            ) -> Result<Self, $crate::codec::DecodeError> {
                use $crate::codec::DecodeError;
                $( let mut $field: Option<$ty> = None; )*
                let mut last: Option<u64> = None;
                while !r.is_empty() {
                    let typ = r.big_size("TLV type")?;
                    if last.is_some_and(|last| typ <= last) {
                        return Err(DecodeError::Order { typ });
                    }
                    last = Some(typ);
                    let len = r.length(u64::MAX, "TLV length")?;
                    let value = r.take(len, "TLV value")?;
                    match typ {
                        $( $typ => {
                            let decoded = <$ty as $crate::codec::Decode>::from_bytes(
                                value,
                                stringify!($field),
                            )?;
                            $field = Some(decoded);
                        } )*
                        _ if typ % 2 == 0 => return Err(DecodeError::UnknownEven { typ }),
                        _ => {}
                    }
                    let _ = value;
                }
                Ok($name { $(
                    $field: $field.ok_or(DecodeError::Missing { field: stringify!($field) })?
                ),* })
            }
        }
    };
}
pub(crate) use tlv;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Seek;
    use bitcoin::hex::FromHex as _;

    /// BOLT1's own examples.
    #[test]
    fn a_number_has_one_encoding() {
        let read = |hex: &str| {
            let bytes = Vec::<u8>::from_hex(hex).unwrap();
            Reader::new(&bytes).big_size("number")
        };
        for (number, hex) in [
            (0, "00"),
            (252, "fc"),
            (253, "fd00fd"),
            (65_535, "fdffff"),
            (65_536, "fe00010000"),
            (4_294_967_295, "feffffffff"),
            (4_294_967_296, "ff0000000100000000"),
            (u64::MAX, "ffffffffffffffffff"),
        ] {
            let mut written = Vec::new();
            write_big_size(number, &mut written);
            assert_eq!(written, Vec::<u8>::from_hex(hex).unwrap());
            assert_eq!(read(hex), Ok(number));
        }
        for longer in ["fd00fc", "fe0000ffff", "ff00000000ffffffff"] {
            let field = "number";
            assert_eq!(read(longer), Err(DecodeError::NotMinimal { field }));
        }
    }

    #[test]
    fn what_is_unknown_repeated_or_left_over_is_refused() {
        let wish = Seek {
            capacity: Amount::from_sat(500_000),
        };
        let bytes = wish.to_bytes();
        let read = |more: &[u8]| Seek::from_bytes(&[&bytes[..], more].concat(), "Seek");
        assert_eq!(read(&[]), Ok(wish.clone()));
        // Odd ones are of versions to come, and optional.
        assert_eq!(read(&[1, 1, 9]), Ok(wish));
        assert_eq!(read(&[2, 1, 9]), Err(DecodeError::UnknownEven { typ: 2 }));
        assert_eq!(read(&bytes), Err(DecodeError::Order { typ: 0 }));
        let mut longer = bytes.clone();
        longer[1] += 1;
        longer.push(0);
        let (what, count) = ("capacity", 1);
        assert_eq!(
            Seek::from_bytes(&longer, "Seek"),
            Err(DecodeError::Trailing { what, count })
        );
    }
}
