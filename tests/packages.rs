//! What `make install` and `make deb` leave: complete, without a trace of the machine, and good to build programs with.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "shared with the tests of the C API")]
#[path = "c_api/toolchain.rs"]
mod toolchain;
#[path = "common/tools.rs"]
mod tools;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use toolchain::{model, root, succeed};

/// The release library is built and linked by one make at a time.
static MAKE: Mutex<()> = Mutex::new(());

fn make(target: &str, variables: &[(&str, &Path)]) {
    let _turn = MAKE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut command = Command::new("make");
    command.current_dir(root()).arg("-s").arg(target);
    if !cfg!(feature = "cuda") {
        command.arg("CUDA=0");
    }
    succeed(command.args(variables.iter().map(|(name, value)| format!("{name}={}", value.display()))));
}

fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages").join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// The tree that `make install` writes, made once.
fn prefix() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let prefix = scratch("prefix");
        make("install", &[("PREFIX", &prefix)]);
        prefix
    })
}

fn files(folder: &Path) -> Vec<String> {
    let listed =
        succeed(Command::new("find").current_dir(folder).args([".", "-not", "-type", "d", "-printf", "%P\\n"]));
    let mut files: Vec<String> = listed.lines().map(str::to_owned).collect();
    files.sort();
    files
}

/// A program that prints what a greedy model says.
fn source() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("installed.c");
    let program = r#"#include <kigo.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    kigo_options *options = NULL;
    kigo_model *model = NULL;
    kigo_inference *inference = NULL;
    char text[256];
    int32_t n = argc == 2 ? kigo_options_new(&options, NULL) : -1;
    if (n >= 0) n = kigo_options_set_str(options, "device", "cpu", NULL);
    if (n >= 0) n = kigo_options_set_str(options, "prompt_format", "user", NULL);
    if (n >= 0) n = kigo_options_set_i64(options, "temperature", 0, NULL);
    if (n >= 0) n = kigo_model_load(argv[1], options, &model, NULL);
    if (n >= 0) n = kigo_inference_start(model, "Write a haiku.", KIGO_NUL_TERMINATED, options, &inference, NULL);
    while (n >= 0 && (n = kigo_next_text(inference, text, sizeof text, NULL)) > 0) printf("%s", text);
    kigo_inference_free(inference);
    kigo_model_free(model);
    kigo_options_free(options);
    return n < 0;
}
"#;
    std::fs::write(&path, program).unwrap();
    path
}

/// Runs a program that was built with an installed library.
fn check_program(program: &Path, library: Option<&Path>) {
    let needed = succeed(Command::new("readelf").args(["-d", "-W"]).arg(program));
    assert_eq!(needed.contains("libkigo.so.0"), library.is_some(), "{needed}");
    let mut command = Command::new("timeout");
    command.arg("300").arg(program).arg(model()).env_remove("LD_LIBRARY_PATH");
    let said = succeed(command.envs(library.map(|path| ("LD_LIBRARY_PATH", path))));
    assert!(said.starts_with("Rain counts on the roof,"), "{said}");
}

fn pkg_config(folder: &Path, arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.args(arguments).arg("kigo").env("PKG_CONFIG_LIBDIR", folder).env_remove("PKG_CONFIG_PATH");
    succeed(&mut command).split_whitespace().map(str::to_owned).collect()
}

#[test]
fn install_writes_what_it_says_and_uninstall_removes_it() {
    let version = env!("CARGO_PKG_VERSION");
    let mut expected: Vec<String> = ["kigo.h", "kigo.hpp", "worker_errors.h", "worker_ffi.h", "worker_types.h"]
        .iter()
        .map(|name| format!("include/{name}"))
        .collect();
    let lib = |name: &str| format!("lib/{name}");
    expected.extend(["cmake/kigo/kigo-config-version.cmake", "cmake/kigo/kigo-config.cmake", "libkigo.a"].map(lib));
    expected.extend(["libkigo.so", "libkigo.so.0", &format!("libkigo.so.{version}"), "pkgconfig/kigo.pc"].map(lib));
    assert_eq!(files(prefix()), expected);
    let copy = scratch("uninstall");
    make("install", &[("DESTDIR", &copy), ("PREFIX", Path::new("/opt/a b"))]);
    assert_eq!(files(&copy.join("opt/a b")), expected);
    make("uninstall", &[("DESTDIR", &copy), ("PREFIX", Path::new("/opt/a b"))]);
    assert_eq!(files(&copy), Vec::<String>::new());
}

#[test]
fn library_is_named_versioned_and_stays_loaded() {
    let library = prefix().join("lib").join(format!("libkigo.so.{}", env!("CARGO_PKG_VERSION")));
    let dynamic = succeed(Command::new("readelf").args(["-d", "-W"]).arg(&library));
    for wanted in ["Library soname: [libkigo.so.0]", "NODELETE", "NOW"] {
        assert!(dynamic.contains(wanted), "{wanted} is missing:\n{dynamic}");
    }
    for unwanted in ["RPATH", "RUNPATH", "TEXTREL"] {
        assert!(!dynamic.contains(unwanted), "{unwanted}:\n{dynamic}");
    }
    let symbols = succeed(Command::new("nm").args(["-D", "--defined-only"]).arg(&library));
    let mut exported: Vec<&str> = symbols.lines().filter_map(|line| line.split(' ').nth(2)).collect();
    exported.retain(|symbol| symbol.contains("@@"));
    let mut names: Vec<&str> = exported.iter().map(|symbol| symbol.split("@@").next().unwrap()).collect();
    names.sort_unstable();
    let listed = std::fs::read_to_string(root().join("include/exports.txt")).unwrap();
    if cfg!(feature = "worker-abi") {
        assert_eq!(names, listed.lines().collect::<Vec<_>>());
    }
}

#[test]
fn libraries_hold_no_path_of_this_machine() {
    let home = std::env::var("HOME").unwrap_or_default();
    let cargo = std::env::var("CARGO_HOME").unwrap_or(format!("{home}/.cargo"));
    let rustup = std::env::var("RUSTUP_HOME").unwrap_or(format!("{home}/.rustup"));
    let paths = [root().to_string_lossy().into_owned(), cargo, rustup];
    for name in ["libkigo.so", "libkigo.a"] {
        let bytes = std::fs::read(prefix().join("lib").join(name)).unwrap();
        for path in &paths {
            let found = bytes.windows(path.len()).position(|window| window == path.as_bytes());
            let around = |at: usize| String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 160)]).into_owned();
            assert!(found.is_none(), "{name} holds {:?}", found.map(around));
        }
    }
    for name in ["pkgconfig/kigo.pc", "cmake/kigo/kigo-config.cmake"] {
        let text = std::fs::read_to_string(prefix().join("lib").join(name)).unwrap();
        assert!(!text.contains('@'), "{text}");
        assert!(!text.replace(&*prefix().to_string_lossy(), "").contains(&*root().to_string_lossy()), "{text}");
    }
}

#[test]
fn pkg_config_builds_both_ways() {
    if !tools::have(&["pkg-config"]) {
        return;
    }
    let folder = prefix().join("lib/pkgconfig");
    assert_eq!(pkg_config(&folder, &["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    let shared = scratch("pc").join("shared");
    let flags = pkg_config(&folder, &["--cflags", "--libs"]);
    succeed(Command::new("cc").arg(source()).arg("-o").arg(&shared).args(flags));
    check_program(&shared, Some(&prefix().join("lib")));

    // A tree without the shared library: the flags for static linking are then all that is needed.
    let alone = scratch("static");
    std::fs::copy(prefix().join("lib/libkigo.a"), alone.join("libkigo.a")).unwrap();
    let flags = pkg_config(&folder, &["--static", "--cflags", "--libs"]);
    let lib = format!("-L{}", prefix().join("lib").display());
    let here = format!("-L{}", alone.display());
    let flags = flags.into_iter().map(|flag| if flag == lib { here.clone() } else { flag });
    succeed(Command::new("cc").arg(source()).arg("-o").arg(alone.join("program")).args(flags));
    check_program(&alone.join("program"), None);
}

#[test]
fn cmake_finds_the_package_where_it_was_moved_to() {
    if !tools::have(&["cmake"]) {
        return;
    }
    let moved = scratch("moved");
    succeed(Command::new("cp").arg("-a").arg(prefix().join(".")).arg(&moved));
    let project = scratch("cmake");
    std::fs::copy(source(), project.join("installed.c")).unwrap();
    let lists = "cmake_minimum_required(VERSION 3.13)\nproject(test C)\nfind_package(kigo 0.1 REQUIRED)\n\
                 add_executable(shared installed.c)\ntarget_link_libraries(shared PRIVATE kigo::kigo)\n\
                 add_executable(static installed.c)\ntarget_link_libraries(static PRIVATE kigo::static)\n\
                 find_package(kigo 99 QUIET)\nif(kigo_FOUND)\n  message(FATAL_ERROR \"99 is not there\")\nendif()\n";
    std::fs::write(project.join("CMakeLists.txt"), lists).unwrap();
    let build = project.join("build");
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(&project).arg("-B").arg(&build);
    succeed(configure.arg(format!("-DCMAKE_PREFIX_PATH={}", moved.display())));
    succeed(Command::new("cmake").arg("--build").arg(&build));
    check_program(&build.join("shared"), Some(&moved.join("lib")));
    check_program(&build.join("static"), None);
}

#[test]
fn debian_packages_install_into_a_root_of_their_own() {
    if !tools::have(&["dpkg-deb", "dpkg-shlibdeps", "dpkg-architecture"]) {
        return;
    }
    make("deb", &[]);
    let version = concat!(env!("CARGO_PKG_VERSION"), "-1");
    let query = |what| succeed(Command::new("dpkg-architecture").arg(what)).trim().to_owned();
    let (architecture, triplet) = (query("-qDEB_HOST_ARCH"), query("-qDEB_HOST_MULTIARCH"));
    let install_root = scratch("debian");
    let is_root = succeed(Command::new("id").arg("-u")).trim() == "0";
    for folder in ["info", "updates"] {
        std::fs::create_dir_all(install_root.join("var/lib/dpkg").join(folder)).unwrap();
    }
    std::fs::write(install_root.join("var/lib/dpkg/status"), "").unwrap();
    for package in ["libkigo0", "libkigo-dev"] {
        let path = root().join(format!("build/deb/{package}_{version}_{architecture}.deb"));
        let field = |name| succeed(Command::new("dpkg-deb").arg("-f").arg(&path).arg(name)).trim().to_owned();
        assert_eq!(
            (field("Package"), field("Version"), field("Source")),
            (package.into(), version.into(), "kigo".into())
        );
        let depends = field("Depends");
        assert!(depends.contains(if package == "libkigo0" { "libc6 (>=" } else { "libkigo0 (= " }), "{depends}");
        if is_root {
            // The packages of the system are not in there.
            let mut install = Command::new("dpkg");
            install.arg(format!("--root={}", install_root.display())).arg("--force-depends");
            succeed(install.arg("--log=/dev/null").arg("-i").arg(&path));
        } else {
            succeed(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&install_root));
        }
        let control = scratch(&format!("control-{package}"));
        succeed(Command::new("dpkg-deb").arg("-e").arg(&path).arg(&control));
        succeed(Command::new("md5sum").current_dir(&install_root).args(["--quiet", "-c"]).arg(control.join("md5sums")));
        if package == "libkigo0" {
            let symbols = std::fs::read_to_string(control.join("symbols")).unwrap();
            assert!(symbols.contains("kigo_model_load@KIGO_0") && control.join("triggers").exists(), "{symbols}");
        }
    }
    let lib = install_root.join("usr/lib").join(triplet);
    let flags = [
        format!("-I{}", install_root.join("usr/include").display()),
        format!("-L{}", lib.display()),
        "-lkigo".to_owned(),
    ];
    let program = install_root.join("program");
    succeed(Command::new("cc").arg(source()).arg("-o").arg(&program).args(flags));
    check_program(&program, Some(&lib));
    let copyright = std::fs::read_to_string(install_root.join("usr/share/doc/libkigo0/copyright")).unwrap();
    assert!(copyright.contains("Permission is hereby granted") && !copyright.contains('@'), "{copyright}");
}
