//! An exit package as a file: encrypted with a passphrase.
//!
//! ```text
//! "SSCREXIT" ‖ version u8 ‖ memory KiB u32 ‖ passes u32 ‖ salt 16 ‖ nonce 24 ‖ ciphertext
//! ```
//! The key is Argon2id of the passphrase, the cipher XChaCha20-Poly1305 with everything before the
//! ciphertext as associated data. What always holds: the only decoder is [`open`]; any bytes give a
//! package whose every signature was verified, or a typed error; no file makes it take more memory
//! or time than the bounds below.

use argon2::{Algorithm, Argon2, Params};
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use superscalar_factory::codec::{Decode as _, DecodeError, Encode as _};
use superscalar_factory::exit::package::ExitPackage;
use zeroize::Zeroizing;

const MAGIC: &[u8; 8] = b"SSCREXIT";
const VERSION: u8 = 1;
const HEADER_BYTES: usize = 8 + 1 + 4 + 4 + SALT_BYTES + NONCE_BYTES;
const SALT_BYTES: usize = 16;
const NONCE_BYTES: usize = 24;
/// What is written: 64 MiB and three passes, below a second on a phone.
const MEMORY_KIB: u32 = 64 * 1024;
const PASSES: u32 = 3;
/// What is read at most.
const MAX_MEMORY_KIB: u32 = 256 * 1024;
const MAX_PASSES: u32 = 16;
/// Hundreds of paths of the largest factories.
pub const MAX_PACKAGE_BYTES: usize = 32 * 1024 * 1024;

/// Why there is no package.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackageError {
    /// An empty passphrase protects nothing.
    #[error("the passphrase is empty")]
    NoPassphrase,
    /// No factory has a complete path.
    #[error("there is no path to export: no factory is complete")]
    NoPath,
    /// The bytes do not begin as an exit package does, or end too early.
    #[error("this is no exit package")]
    NotAPackage,
    /// Written by a newer version.
    #[error("an exit package of version {found}: this program reads version {VERSION}")]
    Version {
        /// The version found.
        found: u8,
    },
    /// Larger than any package is.
    #[error("{bytes} bytes are more than an exit package has")]
    TooLarge {
        /// What there was.
        bytes: usize,
    },
    /// The file asks for more work than any of ours.
    #[error("the file asks for {memory_kib} KiB and {passes} passes, which no package needs")]
    Cost {
        /// Memory in KiB.
        memory_kib: u32,
        /// Passes over it.
        passes: u32,
    },
    /// Another passphrase, or other bytes than were written.
    #[error("wrong passphrase, or the file is damaged")]
    Locked,
    /// It was written by somebody with the passphrase, and is no valid package.
    #[error("the package's content: {0}")]
    Content(#[from] DecodeError),
}

/// What makes two files of one package differ. Random, never used again.
#[derive(Clone, Copy, Debug)]
pub struct Freshness {
    /// For the key.
    pub salt: [u8; SALT_BYTES],
    /// For the cipher.
    pub nonce: [u8; NONCE_BYTES],
}

/// Encrypts a package.
///
/// # Errors
/// [`PackageError::NoPassphrase`].
pub fn seal(
    package: &ExitPackage,
    passphrase: &str,
    fresh: Freshness,
) -> Result<Vec<u8>, PackageError> {
    let header = Header {
        memory_kib: MEMORY_KIB,
        passes: PASSES,
        fresh,
    };
    header.seal(&package.to_bytes(), passphrase)
}

/// Decrypts and verifies a package.
///
/// # Errors
/// See [`PackageError`].
pub fn open(bytes: &[u8], passphrase: &str) -> Result<ExitPackage, PackageError> {
    if bytes.len() > MAX_PACKAGE_BYTES {
        return Err(PackageError::TooLarge { bytes: bytes.len() });
    }
    let (header, ciphertext) = Header::read(bytes)?;
    let payload = Payload {
        msg: ciphertext,
        aad: &bytes[..HEADER_BYTES],
    };
    let nonce = XNonce::from_slice(&header.fresh.nonce);
    let cipher = header.cipher(passphrase)?;
    let plain = cipher.decrypt(nonce, payload);
    let plain = plain.map_err(|_| PackageError::Locked)?;
    Ok(ExitPackage::from_bytes(&plain, "exit package")?)
}

/// Everything before the ciphertext.
struct Header {
    memory_kib: u32,
    passes: u32,
    fresh: Freshness,
}

impl Header {
    fn read(bytes: &[u8]) -> Result<(Header, &[u8]), PackageError> {
        let rest = bytes.strip_prefix(MAGIC);
        let (version, _) = rest
            .and_then(<[u8]>::split_first)
            .ok_or(PackageError::NotAPackage)?;
        if *version != VERSION {
            return Err(PackageError::Version { found: *version });
        }
        let (header, ciphertext) = bytes
            .split_at_checked(HEADER_BYTES)
            .ok_or(PackageError::NotAPackage)?;
        let (numbers, random) = header[MAGIC.len() + 1..].split_at(8);
        let (salt, nonce) = random.split_at(SALT_BYTES);
        let number = |bytes: &[u8]| bytes.try_into().map(u32::from_be_bytes);
        let header = Header {
            memory_kib: number(&numbers[..4]).map_err(|_| PackageError::NotAPackage)?,
            passes: number(&numbers[4..]).map_err(|_| PackageError::NotAPackage)?,
            fresh: Freshness {
                salt: salt.try_into().map_err(|_| PackageError::NotAPackage)?,
                nonce: nonce.try_into().map_err(|_| PackageError::NotAPackage)?,
            },
        };
        Ok((header, ciphertext))
    }

    fn write(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(VERSION);
        out.extend_from_slice(&self.memory_kib.to_be_bytes());
        out.extend_from_slice(&self.passes.to_be_bytes());
        out.extend_from_slice(&self.fresh.salt);
        out.extend_from_slice(&self.fresh.nonce);
        out
    }

    fn seal(&self, plain: &[u8], passphrase: &str) -> Result<Vec<u8>, PackageError> {
        let mut out = self.write();
        let payload = Payload {
            msg: plain,
            aad: &out,
        };
        let nonce = XNonce::from_slice(&self.fresh.nonce);
        let sealed = self.cipher(passphrase)?.encrypt(nonce, payload);
        // The cipher takes up to 256 GiB.
        let sealed = sealed.map_err(|_| PackageError::TooLarge { bytes: plain.len() })?;
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    fn cipher(&self, passphrase: &str) -> Result<XChaCha20Poly1305, PackageError> {
        if passphrase.is_empty() {
            return Err(PackageError::NoPassphrase);
        }
        let cost = || PackageError::Cost {
            memory_kib: self.memory_kib,
            passes: self.passes,
        };
        if self.memory_kib > MAX_MEMORY_KIB || self.passes > MAX_PASSES {
            return Err(cost());
        }
        let params = Params::new(self.memory_kib, self.passes, 1, Some(32));
        let params = params.map_err(|_| cost())?;
        let mut key = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, argon2::Version::V0x13, params)
            .hash_password_into(passphrase.as_bytes(), &self.fresh.salt, &mut *key)
            .map_err(|_| cost())?;
        Ok(XChaCha20Poly1305::new((&*key).into()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As cheap as the algorithm allows.
    const CHEAP: Header = Header {
        memory_kib: 8,
        passes: 1,
        fresh: Freshness {
            salt: [1; SALT_BYTES],
            nonce: [2; NONCE_BYTES],
        },
    };

    fn kind(result: &Result<ExitPackage, PackageError>) -> &'static str {
        match result {
            Ok(_) => "a package",
            Err(PackageError::NoPassphrase) => "no passphrase",
            Err(PackageError::NotAPackage) => "not a package",
            Err(PackageError::Version { .. }) => "version",
            Err(PackageError::TooLarge { .. }) => "too large",
            Err(PackageError::Cost { .. }) => "cost",
            Err(PackageError::Locked) => "locked",
            Err(PackageError::Content(_)) => "content",
            Err(PackageError::NoPath) => "no path",
        }
    }

    #[test]
    fn each_part_of_the_file_is_checked() {
        let good = CHEAP.seal(b"no package", "secret").unwrap();
        assert_eq!(kind(&open(&good, "secret")), "content");
        assert_eq!(kind(&open(&good, "Secret")), "locked");
        assert_eq!(kind(&open(&good, "")), "no passphrase");
        assert!(CHEAP.seal(b"", "").is_err());
        for end in [0, 8, 9, HEADER_BYTES - 1] {
            assert_eq!(
                kind(&open(&good[..end], "secret")),
                "not a package",
                "{end}"
            );
        }
        let changed = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            kind(&open(&bytes, "secret"))
        };
        assert_eq!(changed(0, b'X'), "not a package");
        assert_eq!(changed(8, 2), "version");
        assert_eq!(changed(9, 1), "cost");
        assert_eq!(changed(13, 1), "cost");
        assert_eq!(changed(12, 7), "cost");
        assert_eq!(changed(12, 9), "locked");
        for (at, byte) in good.iter().enumerate().skip(HEADER_BYTES - 1) {
            assert_eq!(changed(at, byte ^ 1), "locked", "{at}");
        }
    }

    #[test]
    fn the_same_content_is_never_written_twice() {
        let other = Header {
            fresh: Freshness {
                salt: [3; SALT_BYTES],
                ..CHEAP.fresh
            },
            ..CHEAP
        };
        let sealed = |header: &Header| header.seal(b"content", "secret").unwrap();
        assert_eq!(sealed(&CHEAP), sealed(&CHEAP));
        assert_ne!(
            sealed(&CHEAP)[HEADER_BYTES..],
            sealed(&other)[HEADER_BYTES..]
        );
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(open(&bytes, "secret").is_err());
            let mut begun = CHEAP.write();
            begun.extend_from_slice(&bytes);
            prop_assert_eq!(kind(&open(&begun, "secret")), "locked");
            let sealed = CHEAP.seal(&bytes, "secret").unwrap();
            prop_assert_eq!(kind(&open(&sealed, "secret")), "content");
        }
    }
}
