//! Header, linker map and shared library agree on what is exported.

use super::header::functions;
use super::toolchain::{root, shared_library, succeed};
use std::collections::BTreeSet;
use std::process::Command;

fn declared() -> BTreeSet<String> {
    functions().into_iter().map(|function| function.name).collect()
}

#[test]
fn map_lists_what_the_header_declares() {
    let map = std::fs::read_to_string(root().join("kigo.map")).unwrap();
    let listed = map.lines().filter_map(|line| line.strip_prefix("    ")?.strip_suffix(';'));
    let listed: BTreeSet<String> = listed.filter(|name| *name != "*").map(str::to_owned).collect();
    assert_eq!(listed, declared());
}

#[test]
fn library_exports_what_the_header_declares() {
    let symbols = succeed(Command::new("nm").args(["-D", "--defined-only"]).arg(shared_library()));
    let exported: BTreeSet<&str> = symbols.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    let mut expected: BTreeSet<String> = declared().iter().map(|name| format!("{name}@@KIGO_0")).collect();
    expected.insert("KIGO_0".to_owned());
    assert_eq!(exported, expected.iter().map(String::as_str).collect());
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
