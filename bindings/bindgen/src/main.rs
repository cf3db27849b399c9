//! Makes the Kotlin and Python sources from the compiled `superscalar-ffi`.
//!
//! `superscalar-bindgen write [<library>]` puts them into their packages, `check [<library>]` says
//! whether the ones there are what it would write. Unless told, the library is the one cargo built
//! together with this program. `make bindings` runs it.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};

use anyhow::{Context, Result, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use uniffi::{GenerateOptions, TargetLanguage};

/// Language, where its package's sources begin, and the generated file below that.
fn outputs() -> [(TargetLanguage, &'static str, &'static str); 2] {
    [
        (
            TargetLanguage::Kotlin,
            "kotlin/src/main/kotlin",
            "org/superscalar/wallet/superscalar_ffi.kt",
        ),
        (
            TargetLanguage::Python,
            "python/superscalar",
            "superscalar_ffi.py",
        ),
    ]
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["write"] => write(&built()?),
        ["write", library] => write(library.into()),
        ["check"] => check(&built()?),
        ["check", library] => check(library.into()),
        _ => bail!("usage: superscalar-bindgen write|check [<library>]"),
    }
}

/// The library cargo built together with this program: the newest is always in `deps`.
fn built() -> Result<Utf8PathBuf> {
    let name = format!("{DLL_PREFIX}superscalar_ffi{DLL_SUFFIX}");
    let program = Utf8PathBuf::try_from(std::env::current_exe()?)?;
    Ok(program.with_file_name("deps").join(name))
}

fn write(library: &Utf8Path) -> Result<()> {
    for (language, folder, _) in outputs() {
        generate(language, library, bindings().join(folder))?;
    }
    Ok(())
}

fn check(library: &Utf8Path) -> Result<()> {
    for (language, folder, file) in outputs() {
        let fresh = tempfile::tempdir()?;
        let out = Utf8PathBuf::try_from(fresh.path().to_owned())?;
        generate(language, library, out.clone())?;
        let committed = bindings().join(folder).join(file);
        ensure!(
            read(&committed)? == read(&out.join(file))?,
            "{committed} is not what the library says: `make bindings` writes it"
        );
    }
    Ok(())
}

fn generate(language: TargetLanguage, library: &Utf8Path, out_dir: Utf8PathBuf) -> Result<()> {
    ensure!(library.is_file(), "{library} is not there");
    uniffi::generate(GenerateOptions {
        languages: vec![language],
        source: library.to_owned(),
        out_dir,
        config_override: None,
        // No formatter: every machine makes the same bytes.
        format: false,
        crate_filter: None,
        metadata_no_deps: true,
    })
}

fn read(path: &Utf8Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.to_string())
}

/// The folder of all bindings.
fn bindings() -> &'static Utf8Path {
    let own = Utf8Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own)
}
