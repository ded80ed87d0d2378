//! The header says what the library has, and every compiler takes it.

use std::path::{Path, PathBuf};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files that export, in the order of the header.
const SOURCES: [&str; 6] = ["library.rs", "status.rs", "error.rs", "options.rs", "model.rs", "inference.rs"];

fn generate() -> String {
    let mut config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    config.header = Some(kigo::c_api::header::first_page());
    config.after_includes = Some(kigo::c_api::header::definitions());
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root().join("src/c_api").join(source));
    }
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap().replace(" * # Safety\n", " * Memory:\n")
}

#[test]
fn header_is_current() {
    let path: PathBuf = root().join("include/kigo.h");
    let generated = generate();
    if std::env::var_os("KIGO_BLESS").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "include/kigo.h is not what src/c_api says; run: KIGO_BLESS=1 cargo test --test c_api header_is_current"
    );
}
