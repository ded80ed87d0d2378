//! The worker functions: headers, rules, and a worker in C++ that knows nothing of kigo but their three headers.

use super::header::{Function, Parameter, functions_of};
use super::toolchain::{self, Link, SYSTEM_LIBRARIES, WARNINGS, build, model, root, scratch, shared_library, succeed};
use std::path::{Path, PathBuf};
use std::process::Command;

const HEADERS: [&str; 3] = ["worker_errors.h", "worker_ffi.h", "worker_types.h"];
const TYPES: [&str; 3] = ["CudaContext", "CudaModel", "InferenceResult"];

/// What workers were written against, as types of pointers to functions.
const DECLARATIONS: [(&str, &str); 14] = [
    ("cuda_init", "CudaContext* (*)(int, int*)"),
    ("cuda_destroy", "void (*)(CudaContext*)"),
    ("cuda_get_device_count", "int (*)(void)"),
    ("cuda_load_model", "CudaModel* (*)(CudaContext*, const char*, uint64_t*, int*)"),
    ("cuda_unload_model", "void (*)(CudaModel*)"),
    ("cuda_model_get_vram_usage", "uint64_t (*)(CudaModel*)"),
    ("cuda_inference_start", "InferenceResult* (*)(CudaModel*, const char*, int, float, uint64_t, int*)"),
    ("cuda_inference_next_token", "bool (*)(InferenceResult*, char*, int, int*, int*)"),
    ("cuda_inference_free", "void (*)(InferenceResult*)"),
    ("cuda_check_vram_residency", "bool (*)(CudaModel*, int*)"),
    ("cuda_get_vram_usage", "uint64_t (*)(CudaModel*)"),
    ("cuda_get_process_vram_usage", "uint64_t (*)(CudaContext*)"),
    ("cuda_check_device_health", "bool (*)(CudaContext*, int*)"),
    ("cuda_error_message", "const char* (*)(int)"),
];

const CODES: [(&str, i32); 10] = [
    ("CUDA_SUCCESS", 0),
    ("CUDA_ERROR_INVALID_DEVICE", 1),
    ("CUDA_ERROR_OUT_OF_MEMORY", 2),
    ("CUDA_ERROR_MODEL_LOAD_FAILED", 3),
    ("CUDA_ERROR_INFERENCE_FAILED", 4),
    ("CUDA_ERROR_INVALID_PARAMETER", 5),
    ("CUDA_ERROR_KERNEL_LAUNCH_FAILED", 6),
    ("CUDA_ERROR_VRAM_RESIDENCY_FAILED", 7),
    ("CUDA_ERROR_DEVICE_NOT_FOUND", 8),
    ("CUDA_ERROR_UNKNOWN", 99),
];

fn generate(name: &str) -> String {
    let source = |file: &str| root().join("src/c_api").join(file);
    let text = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let mut config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    config.include_guard = Some(name.to_uppercase().replace('.', "_"));
    config.autogen_warning = Some("/* Made from src/c_api/worker.rs; change it there. */".to_owned());
    config.sys_includes = vec![];
    let mut sources = vec![source("worker.rs"), source("worker/stream.rs")];
    match name {
        "worker_errors.h" => {
            config.after_includes = Some(format!("\n{}", kigo::c_api::header::worker_codes()));
            sources = vec![source("worker/codes.rs")];
        }
        "worker_types.h" => config.export.include = text(&TYPES.join(" ")),
        _ => {
            config.header = Some(kigo::c_api::header::worker_first_page());
            config.sys_includes = text("stdbool.h stdint.h");
            config.includes = text("worker_errors.h worker_types.h");
        }
    }
    config.export.item_types = match name {
        "worker_types.h" => vec![cbindgen::ItemType::OpaqueItems],
        _ => vec![cbindgen::ItemType::Functions],
    };
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in sources {
        builder = builder.with_src(source);
    }
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap().replace(" * # Safety\n", " * Memory:\n")
}

#[test]
fn worker_headers_are_current() {
    for name in HEADERS {
        let (path, generated) = (root().join("include").join(name), generate(name));
        if std::env::var_os("KIGO_BLESS").is_some() {
            std::fs::write(&path, &generated).unwrap();
        }
        let committed = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(committed == generated, "include/{name} is not what src/c_api/worker.rs says; run: make header");
    }
}

/// Every function that the worker headers declare.
pub fn functions() -> Vec<Function> {
    ["worker_ffi.h", "worker_errors.h"].into_iter().flat_map(functions_of).collect()
}

#[test]
fn worker_functions_are_documented() {
    assert_eq!(functions().len(), DECLARATIONS.len());
    for Function { name, comment, result, .. } in functions() {
        assert!(result == "void" || comment.contains("@returns"), "{name} does not say what it returns");
    }
}

#[test]
fn declarations_are_those_that_workers_were_written_against() {
    let mut program = String::from("#include \"worker_ffi.h\"\n");
    for (index, (name, kind)) in DECLARATIONS.iter().enumerate() {
        program += &format!("{} = {name};\n", kind.replacen("(*)", &format!("(*function_{index})"), 1));
    }
    for (name, number) in CODES {
        program += &format!("typedef char check_{name}[{name} == {number} ? 1 : -1];\n");
    }
    for (language, standards) in [("c", ["c99", "c11", "c17"]), ("c++", ["c++11", "c++17", "c++20"])] {
        let source = scratch().join(format!("declarations.{}", language.replace('+', "p")));
        std::fs::write(&source, &program).unwrap();
        for standard in standards {
            let compiler = if language == "c" { "cc" } else { "c++" };
            succeed(toolchain::compile(compiler, standard).args(["-fsyntax-only", "-x", language]).arg(&source));
            for name in HEADERS {
                let alone = scratch().join(format!("alone.{}", language.replace('+', "p")));
                std::fs::write(&alone, format!("#include \"{name}\"\n#include \"{name}\"\nint unused;\n")).unwrap();
                succeed(toolchain::compile(compiler, standard).args(["-fsyntax-only", "-x", language]).arg(&alone));
            }
        }
    }
}

/// Runs a program on the device that `KIGO_DEVICE` says, with nothing else set.
fn run(program: &Path, device: Option<&str>, arguments: &[&Path]) -> String {
    let mut command = Command::new("timeout");
    command.arg("300").arg(program).args(arguments).env_remove("KIGO_DEVICE").env("KIGO_WORKER_N_CTX", "128");
    succeed(command.envs(device.map(|device| ("KIGO_DEVICE", device))))
}

#[test]
fn rules_of_the_worker_functions() {
    let source = root().join("tests/c_api/worker.c");
    for (name, link) in [("worker-rules", Link::Static), ("worker-rules-shared", Link::Shared)] {
        let program = build(&source, name, link);
        assert_eq!(run(&program, Some("cpu"), &[&model()]), "", "the library prints nothing");
        let mut command = Command::new("timeout");
        command.arg("300").arg(program).arg(model()).env("KIGO_DEVICE", "cpu").env("KIGO_WORKER_TEMPLATE", "0");
        succeed(command.env("KIGO_WORKER_N_CTX", "128"));
    }
}

#[test]
fn a_worker_never_runs_on_the_cpu_unasked() {
    let source = scratch().join("unasked.c");
    let program = "#include \"worker_ffi.h\"\n#include <stdio.h>\n\nint main(void)\n{\n    int code = -1;\n    \
                   CudaContext *context = cuda_init(0, &code);\n    \
                   printf(\"%d %d %d\", cuda_get_device_count(), context != NULL, code);\n    \
                   cuda_destroy(context);\n    return 0;\n}\n";
    std::fs::write(&source, program).unwrap();
    let program = build(&source, "unasked", Link::Static);
    for device in [None, Some(""), Some("cuda")] {
        let said = run(&program, device, &[]);
        let mut words = said.split(' ').map(|word| word.parse::<i32>().unwrap());
        let (gpus, opened, code) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        assert_eq!((opened == 1, code == 0), (gpus > 0, gpus > 0), "{said}");
        assert!(gpus > 0 || code == 8, "{said}");
    }
    assert_eq!(run(&program, Some("cpu"), &[]), "1 1 0");
    for wrong in ["auto", "CPU", "cuda:0"] {
        assert_eq!(run(&program, Some(wrong), &[]), "0 0 5");
    }
}

/// Something valid for a parameter.
fn valid(Parameter { name, kind, .. }: &Parameter) -> &'static str {
    match (kind.as_str(), name.as_str()) {
        ("CudaContext *", _) => "context",
        ("CudaModel *", _) => "model",
        ("InferenceResult *", _) => "result",
        ("const char *", "model_path") => "path",
        ("const char *", "prompt") => "\"Once\"",
        ("char *", _) => "text",
        ("int", "token_buffer_size") => "sizeof text",
        ("uint64_t *", _) => "&bytes",
        ("int *", "token_index") => "&index",
        ("int *", "error_code") => "&code",
        ("int", "gpu_device") => "0",
        ("int" | "float" | "uint64_t", _) => "1",
        other => panic!("nothing valid is known for {other:?}"),
    }
}

#[test]
fn c01_null_for_every_pointer_of_the_worker_functions() {
    let mut body = String::new();
    let mut pointers = 0;
    for function in functions() {
        for null in function.parameters.iter().filter(|parameter| parameter.kind.ends_with('*')) {
            let arguments = function.parameters.iter().map(|parameter| match parameter.name == null.name {
                true => "NULL",
                false => valid(parameter),
            });
            let call = format!("{}({})", function.name, arguments.collect::<Vec<_>>().join(", "));
            let codes = function.parameters.iter().any(|parameter| parameter.name == "error_code");
            pointers += 1;
            body += &match () {
                () if function.result == "void" => format!("    {call};\n"),
                () if null.comment.contains("May be NULL") => format!("    CHECK({call} && code == 0);\n"),
                () if codes && null.name != "error_code" => {
                    format!("    code = -1;\n    CHECK(!{call} && code == 5);\n")
                }
                () => format!("    code = -1;\n    CHECK(!{call} && code == -1);\n"),
            };
        }
    }
    assert!(pointers >= 20, "only {pointers} pointers found in the headers");
    let program = format!(
        "#include \"worker_ffi.h\"\n#include \"check.h\"\n\nint main(int argc, char **argv)\n{{\n    \
         const char *path = argv[argc - 1];\n    char text[256];\n    uint64_t bytes = 0;\n    int code = 0, index = 0;\n    \
         CudaContext *context = cuda_init(0, &code);\n    \
         CudaModel *model = cuda_load_model(context, path, &bytes, &code);\n    \
         InferenceResult *result = cuda_inference_start(model, \"Once\", 2, 0, 0, &code);\n    \
         CHECK(result != NULL);\n{body}    \
         cuda_inference_free(result);\n    cuda_unload_model(model);\n    cuda_destroy(context);\n    return 0;\n}}\n"
    );
    let source = scratch().join("worker-nulls.c");
    std::fs::write(&source, program).unwrap();
    run(&build(&source, "worker-nulls", Link::Static), Some("cpu"), &[&model()]);
}

/// A folder with the three headers and nothing else.
fn headers_alone() -> PathBuf {
    let folder = scratch().join("worker-headers");
    std::fs::create_dir_all(&folder).unwrap();
    for name in HEADERS {
        std::fs::copy(root().join("include").join(name), folder.join(name)).unwrap();
    }
    folder
}

/// The worker of the examples, linked with -lkigo or with libkigo.a.
fn worker(link: Link) -> PathBuf {
    let program = scratch().join(if link == Link::Static { "worker-static" } else { "worker-shared" });
    let mut command = Command::new("c++");
    command.arg("-std=c++17").args(WARNINGS).arg("-I").arg(headers_alone());
    command.arg(root().join("examples/worker/worker.cpp")).arg("-o").arg(&program);
    match link {
        Link::Static => command.arg(toolchain::static_library()),
        _ => {
            let folder = shared_library().parent().unwrap();
            command.arg("-L").arg(folder).arg("-lkigo").arg(format!("-Wl,-rpath,{}", folder.display()))
        }
    };
    succeed(command.args(SYSTEM_LIBRARIES));
    program
}

#[test]
fn a_worker_in_cpp_streams_through_both_libraries() {
    let mut outputs = vec![];
    for link in [Link::Static, Link::Shared] {
        let program = worker(link);
        let mut command = Command::new("sh");
        command
            .args(["-c", "printf 'Once upon\\nA second one\\n' | timeout 300 \"$0\" \"$1\""])
            .arg(program)
            .arg(model());
        let said = succeed(command.env("KIGO_DEVICE", "cpu").env("KIGO_WORKER_N_CTX", "512"));
        let events: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |name: &str| events.iter().filter(|event| event["event"] == name).collect::<Vec<_>>();
        assert_eq!((of("ready").len(), of("end").len(), of("error").len()), (1, 2, 0), "{said}");
        let first: Vec<_> = events.iter().skip(1).take_while(|event| event["event"] == "token").collect();
        assert!(!first.is_empty() && first.iter().enumerate().all(|(index, event)| event["i"] == index), "{said}");
        outputs.push(events.iter().map(|event| event["t"].as_str().unwrap_or_default()).collect::<String>());
    }
    assert_eq!(outputs[0], outputs[1]);
    let failed = Command::new(worker(Link::Shared)).arg(model()).env("KIGO_DEVICE", "no").output().unwrap();
    assert_eq!(failed.status.code(), Some(5));
}
