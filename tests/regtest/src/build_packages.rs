//! What building bitcoind takes beside cargo, and how its absence is told.
//!
//! `scripts/setup` installs the same packages; a test below holds the two lists together.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::binary::{BitcoindError, on_path};

/// A Debian package the build needs and how its presence is recognised.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct BuildPackage {
    /// Name of the package in Debian and Ubuntu.
    pub debian: &'static str,
    /// Program on the `PATH` or C++ header it brings.
    pub provides: Provides,
}

/// What a [`BuildPackage`] brings.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Provides {
    /// One of these programs on the `PATH`.
    Program(&'static [&'static str]),
    /// A header the C++ compiler finds.
    Header(&'static str),
}

/// Everything the build needs beside cargo. `scripts/setup` installs the same list.
pub const BUILD_PACKAGES: [BuildPackage; 6] = [
    BuildPackage {
        debian: "g++",
        provides: Provides::Program(&["c++", "g++", "clang++"]),
    },
    BuildPackage {
        debian: "cmake",
        provides: Provides::Program(&["cmake"]),
    },
    BuildPackage {
        debian: "ninja-build",
        provides: Provides::Program(&["ninja"]),
    },
    BuildPackage {
        debian: "pkg-config",
        provides: Provides::Program(&["pkg-config"]),
    },
    BuildPackage {
        debian: "libboost-dev",
        provides: Provides::Header("boost/version.hpp"),
    },
    BuildPackage {
        debian: "libevent-dev",
        provides: Provides::Header("event2/event.h"),
    },
];

impl BuildPackage {
    /// True when the build would find what this package brings.
    pub fn is_present(&self) -> bool {
        match self.provides {
            Provides::Program(names) => names.iter().any(|name| on_path(name).is_some()),
            Provides::Header(header) => compiler_finds(header),
        }
    }

    fn wanted(&self) -> String {
        match self.provides {
            Provides::Program(names) => names[0].to_owned(),
            Provides::Header(header) => format!("<{header}>"),
        }
    }
}

/// Fails with the names of all that is absent.
pub(crate) fn require(packages: &[BuildPackage]) -> Result<(), BitcoindError> {
    let absent: Vec<_> = packages
        .iter()
        .filter(|package| !package.is_present())
        .collect();
    if absent.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = absent.iter().map(|package| package.debian).collect();
    let wanted: Vec<String> = absent.iter().map(|package| package.wanted()).collect();
    Err(BitcoindError::MissingTools {
        missing: wanted.join(", "),
        packages: names.join(" "),
    })
}

fn compiler_finds(header: &str) -> bool {
    let compiler = ["c++", "g++", "clang++"]
        .into_iter()
        .find(|name| on_path(name).is_some());
    let Some(compiler) = compiler else {
        return false;
    };
    let preprocessor = Command::new(compiler)
        .args(["-E", "-x", "c++", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut preprocessor) = preprocessor else {
        return false;
    };
    let written = preprocessor
        .stdin
        .take()
        .is_some_and(|mut stdin| writeln!(stdin, "#include <{header}>").is_ok());
    preprocessor.wait().is_ok_and(|status| status.success()) && written
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_header_nobody_ships_is_not_found() {
        assert!(!compiler_finds("superscalar/no_such_header.hpp"));
    }

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let package = |debian, provides| BuildPackage { debian, provides };
        let packages = [
            package("sh", Provides::Program(&["sh"])),
            package(
                "libboost-dev",
                Provides::Header("superscalar/no_such_header.hpp"),
            ),
            package(
                "ninja-build",
                Provides::Program(&["no-such-ninja", "nor-this"]),
            ),
        ];
        let error = require(&packages).unwrap_err();
        let BitcoindError::MissingTools { missing, packages } = error else {
            panic!("{error}")
        };
        assert_eq!(missing, "<superscalar/no_such_header.hpp>, no-such-ninja");
        assert_eq!(packages, "libboost-dev ninja-build");
    }

    #[test]
    fn the_setup_script_installs_every_package() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/setup");
        let script = fs::read_to_string(script).unwrap();
        for package in BUILD_PACKAGES {
            assert!(
                script
                    .split(['"', ' ', '\n'])
                    .any(|word| word == package.debian),
                "{package:?}"
            );
        }
    }
}
