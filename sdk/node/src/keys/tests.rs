use std::collections::HashSet;
use std::str::FromStr;

use super::*;

const ABANDON: &str = "abandon abandon abandon abandon abandon abandon abandon abandon abandon \
                       abandon abandon about";

fn keys(network: Network) -> WalletKeys {
    WalletKeys::new(&Mnemonic::parse(ABANDON).unwrap(), "", network).unwrap()
}

/// BIP85's first test vector pins the HMAC step.
#[test]
fn entropy_is_bip85() {
    let master = Xpriv::from_str(
        "xprv9s21ZrQH143K2LBWUUQRFXhucrQqBpKdRRxNVq2zBqsx8HVqFk2uYo8kmbaLLHRdqtQpUm98uKfu3vca1LqdGhUtyoFnCNkfmXRyPXLjbKb",
    )
    .unwrap();
    let path = DerivationPath::from_str("m/83696968'/0'/0'").unwrap();
    assert_eq!(
        hex::encode(bip85_entropy(&master, &path).unwrap().expose()),
        "efecfbccffea313214232d29e71563d941229afb4338c21f9517c41aaa0d16f0"
    );
}

/// Changing any of these loses money: they are what a restored backup derives.
#[test]
fn derivations_are_pinned() {
    let main = keys(Network::Bitcoin);
    let test = keys(Network::Regtest);
    let shown = |keys: &WalletKeys| {
        [
            hex::encode(keys.lightning_seed().unwrap().expose()),
            hex::encode(keys.factory_seed().unwrap().expose()),
            hex::encode(keys.backup_key().unwrap().expose()),
            hex::encode(keys.seed_tag().unwrap()),
        ]
    };
    assert_eq!(shown(&main), MAINNET);
    assert_eq!(shown(&test), TESTNETS);
    let distinct: HashSet<_> = MAINNET.iter().chain(&TESTNETS).collect();
    assert_eq!(distinct.len(), 8);
}

const MAINNET: [&str; 4] = [
    "9f0573ecbcbee59c010f8cd563918783bfa6b1eed43c0559c73e4fda5a54be43",
    "8dfd29ce390576e0f69f6a46116c238830cd15338cd176f5e537eab9fed64845",
    "2a6b8fec1de9d42bdb7efcf4b947b5c5b17058fe7e7ae3c8b2c951c0e6e5e834",
    "b2922b30b83740a28a8f9c64e68bbab7fceeb82676e0852a1387a27aa94551b2",
];
const TESTNETS: [&str; 4] = [
    "4bd45c739b26cbfeec4b567f302ad86dbcc2877121c8638ea8e9327b6d25d76d",
    "b6c232f2e82380b3708b346f64c26be62ec3229580ff3ad138540f35da5c87f3",
    "8d1dce14e47d1fa0c91804882bf169f08ecddae1fe29d7064efe5cab510cb33e",
    "34b01da5394405993bbe1447892977b44853c3a6f94c6c0003deca2f8a0e8b29",
];

/// BIP86's own test vector: the first receiving and change address.
#[test]
fn onchain_wallet_is_bip86() {
    let keys = keys(Network::Bitcoin);
    let address = |keychain| {
        keys.onchain_descriptor(keychain)
            .unwrap()
            .at_derivation_index(0)
            .unwrap()
            .address(Network::Bitcoin)
            .unwrap()
            .to_string()
    };
    assert_eq!(
        address(KeychainKind::External),
        "bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr"
    );
    assert_eq!(
        address(KeychainKind::Internal),
        "bc1p3qkhfews2uk44qtvauqyr2ttdsw7svhkl9nkm9s9c3x4ax5h60wqwruhk7"
    );
}

#[test]
fn new_mnemonics_have_the_length_asked_for_and_differ() {
    for (words, count) in [(WordCount::Twelve, 12), (WordCount::TwentyFour, 24)] {
        let one = Mnemonic::generate(words).unwrap();
        assert_eq!(one.phrase().split(' ').count(), count);
        assert_ne!(one, Mnemonic::generate(words).unwrap());
        assert_eq!(Mnemonic::parse(&one.phrase()).unwrap(), one);
    }
}

#[test]
fn a_passphrase_makes_another_wallet() {
    let words = Mnemonic::parse(ABANDON).unwrap();
    let with = WalletKeys::new(&words, "TREZOR", Network::Regtest).unwrap();
    assert_ne!(with.seed_tag(), keys(Network::Regtest).seed_tag());
    assert_eq!(
        keys(Network::Regtest).seed_tag(),
        keys(Network::Signet).seed_tag(),
        "the test networks share a coin type; the store tells them apart by name"
    );
}

#[test]
fn bad_mnemonics_are_named() {
    let loud = ABANDON.to_uppercase().replace(' ', "  \n");
    assert_eq!(Mnemonic::parse(&loud), Mnemonic::parse(ABANDON));
    for (text, expected) in [
        ("", KeysError::WordCount { words: 0 }),
        ("abandon about", KeysError::WordCount { words: 2 }),
        (
            &ABANDON.replace("about", "bitcorn"),
            KeysError::UnknownWord { position: 12 },
        ),
        (&ABANDON.replace("about", "abandon"), KeysError::Checksum),
    ] {
        assert_eq!(Mnemonic::parse(text), Err(expected), "{text}");
    }
}

#[test]
fn debug_output_shows_no_secret() {
    let keys = keys(Network::Regtest);
    let words = Mnemonic::parse(ABANDON).unwrap();
    let seed = keys.lightning_seed().unwrap();
    let shown = format!("{keys:?} {words:?} {seed:?}");
    assert!(!shown.contains("abandon"), "{shown}");
    assert!(!shown.contains("prv"), "{shown}");
    assert!(!shown.contains(&hex::encode(seed.expose())), "{shown}");
    assert!(!shown.contains(&format!("{:?}", seed.expose())), "{shown}");
}
