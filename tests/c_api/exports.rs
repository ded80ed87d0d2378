//! Header, linker map and shared library agree on what is exported.

use super::header::{Function, functions};
use super::toolchain::{root, shared_library, succeed};
use std::collections::BTreeSet;
use std::process::Command;

/// Every function of the headers, with the version of its symbol.
fn declared() -> Vec<(String, &'static str)> {
    let versioned = |version| move |function: Function| (function.name, version);
    let declared = functions().into_iter().map(versioned("KIGO_0"));
    #[cfg(feature = "worker-abi")]
    let declared = declared.chain(super::worker::functions().into_iter().map(versioned("KIGO_WORKER_0")));
    declared.collect()
}

/// The list for people and packagers: one name a line, sorted.
#[cfg(feature = "worker-abi")]
#[test]
fn exports_are_current() {
    let names: BTreeSet<String> = declared().into_iter().map(|(name, _)| name).collect();
    let expected: String = names.iter().map(|name| format!("{name}\n")).collect();
    let path = root().join("include/exports.txt");
    if std::env::var_os("KIGO_BLESS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    let listed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(listed == expected, "include/exports.txt is not what the headers declare; run: make header");
}

/// The functions of each version in the map.
fn mapped() -> Vec<(String, String)> {
    let map = std::fs::read_to_string(root().join("kigo.map")).unwrap();
    let mut version = "";
    let mut mapped = vec![];
    for line in map.lines() {
        match line.strip_suffix(" {") {
            Some(name) => version = name,
            None => {
                let name = line.strip_prefix("    ").and_then(|line| line.strip_suffix(';'));
                mapped.extend(name.filter(|name| *name != "*").map(|name| (name.to_owned(), version.to_owned())));
            }
        }
    }
    if !cfg!(feature = "worker-abi") {
        mapped.retain(|(_, version)| version != "KIGO_WORKER_0");
    }
    mapped
}

#[test]
fn map_lists_what_the_headers_declare() {
    let mapped: BTreeSet<_> = mapped().into_iter().collect();
    let declared = declared().into_iter().map(|(name, version)| (name, version.to_owned())).collect();
    assert_eq!(mapped, declared);
}

#[test]
fn library_exports_what_the_headers_declare() {
    let symbols = succeed(Command::new("nm").args(["-D", "--defined-only"]).arg(shared_library()));
    let exported: BTreeSet<&str> = symbols.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    let declared = declared();
    let mut expected: BTreeSet<String> = declared.iter().map(|(name, version)| format!("{name}@@{version}")).collect();
    expected.extend(declared.iter().map(|(_, version)| (*version).to_owned()));
    assert_eq!(exported, expected.iter().map(String::as_str).collect());
}

#[test]
fn every_export_is_called_by_a_c_program() {
    let programs: String = std::fs::read_dir(root().join("tests/c_api"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "c" || extension == "h"))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    for (name, _) in declared() {
        assert!(programs.contains(&format!("{name}(")), "no program in tests/c_api calls {name}");
    }
}

#[test]
fn library_has_its_name_and_stays_loaded() {
    let dynamic = succeed(Command::new("readelf").args(["-d", "-W"]).arg(shared_library()));
    let abi = kigo::c_api::kigo_abi_version();
    assert!(dynamic.contains(&format!("Library soname: [libkigo.so.{abi}]")), "{dynamic}");
    for flag in ["NODELETE", "NOW"] {
        assert!(dynamic.contains(flag), "{flag} is missing:\n{dynamic}");
    }
}
