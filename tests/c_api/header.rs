//! The header says what the library has, and every compiler takes it.

use super::toolchain::{compile, root, scratch, succeed};

/// The files that export, in the order of the header.
const SOURCES: [&str; 14] = [
    "library.rs",
    "status.rs",
    "error.rs",
    "log.rs",
    "device.rs",
    "options.rs",
    "model.rs",
    "info.rs",
    "metadata.rs",
    "tokens.rs",
    "load.rs",
    "chat.rs",
    "inference.rs",
    "turns.rs",
];

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

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join("include").join(name)).unwrap()
}

fn committed() -> String {
    read("kigo.h")
}

#[test]
fn header_is_current() {
    let generated = generate();
    if std::env::var_os("KIGO_BLESS").is_some() {
        std::fs::write(root().join("include/kigo.h"), &generated).unwrap();
    }
    assert!(
        committed() == generated,
        "include/kigo.h is not what src/c_api says; run: KIGO_BLESS=1 cargo test --test c_api header_is_current"
    );
}

/// A function of the header.
#[derive(Debug)]
pub struct Function {
    pub name: String,
    /// Its result, such as `int32_t`.
    pub result: String,
    pub parameters: Vec<Parameter>,
    /// The comment before it.
    pub comment: String,
}

/// A parameter of a function.
#[derive(Debug)]
pub struct Parameter {
    pub name: String,
    /// Its type, such as `const char *`.
    pub kind: String,
    /// What the comment says on it.
    pub comment: String,
}

/// Every function that the committed `kigo.h` declares.
pub fn functions() -> Vec<Function> {
    functions_of("kigo.h")
}

/// Every function that a committed header declares.
pub fn functions_of(name: &str) -> Vec<Function> {
    let header = read(name);
    let (_, declarations) = header.split_once("extern \"C\" {").unwrap();
    declarations.split("/**\n").filter_map(function).collect()
}

/// The function of a chunk that is a comment and what follows it; None if that is something else.
fn function(chunk: &str) -> Option<Function> {
    let (comment, code) = chunk.split_once("*/")?;
    let declaration = code.split_once(';')?.0.split_whitespace().collect::<Vec<_>>().join(" ");
    if declaration.starts_with("typedef ") {
        return None;
    }
    let (head, parameters) = declaration.strip_suffix(')')?.split_once('(')?;
    let (result, name) = split_name(head);
    let parameters = parameters.split(", ").filter(|text| *text != "void").map(|text| {
        let (kind, name) = split_name(text);
        let comment = comment.split_once(&format!("@param {name} "));
        let comment = comment.unwrap_or_else(|| panic!("{head} does not document {name}")).1;
        Parameter { comment: comment.split(['@']).next().unwrap().to_owned(), name, kind }
    });
    Some(Function { parameters: parameters.collect(), comment: comment.to_owned(), name, result })
}

fn split_name(declaration: &str) -> (String, String) {
    let start = declaration.rfind([' ', '*']).unwrap() + 1;
    (declaration[..start].trim_end().to_owned(), declaration[start..].to_owned())
}

#[test]
fn every_function_is_documented() {
    let functions = functions();
    assert_eq!(functions.len(), committed().matches("\nint32_t kigo_").count() + 4);
    for Function { name, comment, result, .. } in functions {
        assert!(comment.contains("@returns"), "{name} does not say what it returns");
        assert!(comment.contains("Any thread may call it"), "{name} has no thread rule");
        let fails = result == "int32_t";
        assert!(!fails || comment.contains("KIGO_FORKED"), "{name} does not say what a forked child gets");
    }
}

#[test]
fn comments_name_only_what_exists() {
    let header = committed();
    let names: Vec<String> = functions().into_iter().map(|function| function.name).collect();
    for word in header.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        if word.starts_with("KIGO_")
            && !["KIGO_H", "KIGO_FINISH_", "KIGO_OPTION_", "KIGO_TOKEN_", "KIGO_METADATA_", "KIGO_LOG_"].contains(&word)
        {
            assert!(header.contains(&format!("#define {word} ")), "{word} is not defined");
        }
        if word.starts_with("kigo_") {
            let is_type =
                header.contains(&format!("typedef struct {word} {word};")) || header.contains(&format!("(*{word})("));
            assert!(is_type || names.iter().any(|name| name == word), "{word} is not declared");
        }
    }
}

#[test]
fn the_program_on_the_first_page_compiles() {
    let header = committed();
    let (_, rest) = header.split_once("```c\n").unwrap();
    let (code, _) = rest.split_once(" * ```\n").unwrap();
    let code = code.replace("\n * ", "\n    ").replacen(" * ", "    ", 1);
    let source = scratch().join("first_page.c");
    let program =
        format!("#include \"kigo.h\"\n#include <stdio.h>\n\nint main(void)\n{{\n{code}    return n < 0;\n}}\n");
    std::fs::write(&source, program).unwrap();
    for (compiler, standard) in [("cc", "c99"), ("c++", "c++11")] {
        let language = if compiler == "cc" { "c" } else { "c++" };
        succeed(compile(compiler, standard).args(["-fsyntax-only", "-x", language]).arg(&source));
    }
}

#[test]
fn c23_every_standard_takes_the_header_twice() {
    let matrix = [("cc", "c", ["c99", "c11", "c17", "gnu17"]), ("c++", "cpp", ["c++11", "c++14", "c++17", "c++20"])];
    for (compiler, extension, standards) in matrix {
        let source = scratch().join(format!("twice.{extension}"));
        std::fs::write(&source, "#include \"kigo.h\"\n#include \"kigo.h\"\nint main(void) { return KIGO_OK; }\n")
            .unwrap();
        for standard in standards {
            succeed(compile(compiler, standard).arg("-fsyntax-only").arg(&source));
        }
    }
}

#[test]
fn c23_numbers_of_the_header_are_those_of_the_library() {
    let mut program =
        String::from("#include \"kigo.h\"\n#define EQUAL(a, b) typedef char check_##a[(a) == (b) ? 1 : -1]\n");
    for status in kigo::Status::ALL {
        program += &format!("EQUAL(KIGO_{}, {});\n", status.name(), *status as i32);
    }
    for part in ["MAJOR", "MINOR", "PATCH"] {
        let value = match part {
            "MAJOR" => env!("CARGO_PKG_VERSION_MAJOR"),
            "MINOR" => env!("CARGO_PKG_VERSION_MINOR"),
            _ => env!("CARGO_PKG_VERSION_PATCH"),
        };
        program += &format!("EQUAL(KIGO_VERSION_{part}, {value});\n");
    }
    program += &format!("EQUAL(KIGO_ABI_VERSION, {});\n", kigo::c_api::kigo_abi_version());
    let length = env!("CARGO_PKG_VERSION").len() + 1;
    program += &format!("typedef char check_string[sizeof KIGO_VERSION_STRING == {length} ? 1 : -1];\n");
    program += "typedef char check_len[(size_t)KIGO_NUL_TERMINATED == (size_t)-1 ? 1 : -1];\n";
    let source = scratch().join("numbers.c");
    std::fs::write(&source, program).unwrap();
    succeed(compile("cc", "c99").arg("-fsyntax-only").arg(&source));
}
