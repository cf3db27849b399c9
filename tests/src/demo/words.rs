//! The addresses twelve or twenty-four words give, derived here from BIP39, BIP32 and BIP86 alone:
//! the checker does not ask a wallet which addresses are its own.

use anyhow::Result;
use bip39::Mnemonic;
use bitcoin::bip32::{ChildNumber, DerivationPath, Xpriv};
use bitcoin::key::Secp256k1;
use bitcoin::{NetworkKind, ScriptBuf};

/// Addresses looked at on each keychain.
const GAP: u32 = 50;

/// All scripts of account 0 of a test network within the gap, receiving and change.
///
/// # Errors
/// When these are no words.
pub fn scripts(words: &str) -> Result<Vec<ScriptBuf>> {
    let seed = Mnemonic::parse_normalized(words.trim())?.to_seed_normalized("");
    let secp = Secp256k1::new();
    let master = Xpriv::new_master(NetworkKind::Test, &seed)?;
    let account: DerivationPath = "m/86'/1'/0'".parse()?;
    let account = master.derive_priv(&secp, &account)?;
    let mut scripts = Vec::new();
    for keychain in 0..2 {
        for index in 0..GAP {
            let path = [keychain, index].map(|index| ChildNumber::Normal { index });
            let key = account.derive_priv(&secp, &path)?.to_keypair(&secp);
            let internal = key.x_only_public_key().0;
            scripts.push(ScriptBuf::new_p2tr(&secp, internal, None));
        }
    }
    Ok(scripts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_test_vector_of_bip86_comes_out() {
        // The keys are those of BIP86's account m/86'/1'/0' of the same words.
        let words = "abandon abandon abandon abandon abandon abandon abandon abandon abandon \
                     abandon abandon about";
        let scripts = scripts(words).unwrap();
        assert_eq!(scripts.len(), 100);
        let address = bitcoin::Address::from_script(&scripts[0], bitcoin::Network::Testnet);
        assert_eq!(
            address.unwrap().to_string(),
            "tb1p8wpt9v4frpf3tkn0srd97pksgsxc5hs52lafxwru9kgeephvs7rqlqt9zj"
        );
    }
}
