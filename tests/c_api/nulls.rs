//! C01: NULL for every pointer of every function. The C program is made from the header, so that a new function
//! cannot be forgotten, and what it expects is made from the comments, so that they cannot be wrong.

use super::header::{Function, Parameter, functions};
use super::toolchain::{Link, build, model, run, scratch};
use std::fmt::Write;

const HANDLES: [&str; 5] = ["kigo_model", "kigo_load", "kigo_inference", "kigo_options", "kigo_error"];

/// Something valid for a parameter.
fn valid(function: &str, Parameter { name, kind, .. }: &Parameter) -> String {
    match (kind.as_str(), name.as_str()) {
        ("const char *", "path") => "path".to_owned(),
        ("const char *", "file") => "file".to_owned(),
        ("const char *", "prompt") => "\"Once\"".to_owned(),
        ("const char *", "value") => "\"cpu\"".to_owned(),
        ("const char *", "key") => match function {
            "kigo_model_get_str" | "kigo_options_set_str" => "\"device\"",
            "kigo_model_get_i64" => "\"n_vocab\"",
            "kigo_model_get_f64" => "\"load_ms\"",
            "kigo_options_set_i64" => "\"max_tokens\"",
            "kigo_options_set_f64" => "\"temperature\"",
            "kigo_device_get_str" => "\"name\"",
            "kigo_device_get_i64" => "\"memory_bytes\"",
            "kigo_inference_get_i64" => "\"prompt_tokens\"",
            "kigo_inference_get_f64" => "\"prompt_ms\"",
            "kigo_model_special_token" => "\"bos\"",
            "kigo_model_metadata_get_str" | "kigo_model_metadata_get_json" => "\"general.architecture\"",
            "kigo_model_metadata_type" | "kigo_model_metadata_get_i64" => "\"llama.block_count\"",
            "kigo_model_metadata_get_f64" => "\"llama.attention.layer_norm_rms_epsilon\"",
            _ => panic!("no valid key is known for {function}"),
        }
        .to_owned(),
        ("const char *", "messages") => "\"[]\"".to_owned(),
        ("size_t", "messages_len") => "2".to_owned(),
        ("const char *", "text") => "\"Once\"".to_owned(),
        ("size_t", "text_len") => "4".to_owned(),
        ("const char *", "version") => "KIGO_VERSION_STRING".to_owned(),
        ("uint32_t", "abi") => "KIGO_ABI_VERSION".to_owned(),
        ("int64_t", "first") => "0".to_owned(),
        ("const int32_t *", "tokens") => "ids".to_owned(),
        ("size_t", "prompt_len") => "4".to_owned(),
        ("size_t", "n_tokens") => "2".to_owned(),
        ("size_t", "size") => "sizeof text".to_owned(),
        ("char *", "text" | "bytes" | "buffer") => "text".to_owned(),
        ("int32_t *", "token" | "level" | "element_type") => "&token".to_owned(),
        ("int32_t *", "tokens") => "many".to_owned(),
        ("float *", "logits") => "&single".to_owned(),
        ("double *", "logprobs") => "&number".to_owned(),
        ("int64_t *", "value" | "done" | "total" | "device_bytes" | "host_bytes" | "time_ms" | "n_elements") => {
            "&integer".to_owned()
        }
        ("double *", "value") => "&number".to_owned(),
        ("int32_t", "device") => "0".to_owned(),
        ("kigo_progress" | "kigo_log_sink", _) | ("void *", "user_data") => "NULL".to_owned(),
        ("int32_t" | "int64_t" | "double", _) => "1".to_owned(),
        ("kigo_error **", "error") => "&told".to_owned(),
        (pointer, name) if HANDLES.iter().any(|handle| pointer == format!("{handle} **")) => format!("&new_{name}"),
        (pointer, name) if HANDLES.iter().any(|handle| pointer.ends_with(&format!("{handle} *"))) => {
            format!("live_{name}")
        }
        other => panic!("{function}: nothing valid is known for {other:?}"),
    }
}

/// What NULL for `parameter` must come to, as a C condition on `got`.
fn expected(function: &Function, parameter: &Parameter) -> String {
    let Parameter { name, kind, comment } = parameter;
    let is_handle = !kind.ends_with("**") && kind.contains("kigo_");
    if function.name == "kigo_model_load" && name == "options" {
        // The defaults ask for a GPU, which the machine may not have.
        "got != KIGO_INVALID_HANDLE && got != KIGO_INVALID_ARGUMENT".to_owned()
    } else if function.name.starts_with("kigo_device_") && comment.contains("or NULL") {
        // There may be no GPU to ask about.
        "got != KIGO_INVALID_ARGUMENT".to_owned()
    } else if comment.contains("or NULL") {
        "got >= 0".to_owned()
    } else if function.result != "int32_t" {
        "got != 0".to_owned()
    } else {
        let status = if is_handle { "KIGO_INVALID_HANDLE" } else { "KIGO_INVALID_ARGUMENT" };
        let told = function.parameters.iter().any(|parameter| parameter.name == "error");
        let names = if told && function.name != "kigo_error_status" && parameter.name != "error" {
            format!(" && strstr(kigo_error_message(told), \"{name}: \") == kigo_error_message(told)")
        } else {
            String::new()
        };
        format!("got == {status}{names}")
    }
}

fn check(function: &Function, null: &Parameter) -> String {
    let arguments = function.parameters.iter().map(|parameter| match parameter.name == null.name {
        true => "NULL".to_owned(),
        false => valid(&function.name, parameter),
    });
    let call = format!("{}({})", function.name, arguments.collect::<Vec<_>>().join(", "));
    let call = if function.result == "int32_t" { call } else { format!("{call} != NULL") };
    let condition = expected(function, null);
    format!("    fresh(path);\n    got = {call};\n    CHECK({condition});\n    clear();\n")
}

#[test]
fn c01_null_for_every_pointer() {
    let mut body = String::new();
    let mut pointers = 0;
    for function in functions() {
        for parameter in function.parameters.iter().filter(|parameter| parameter.kind.ends_with('*')) {
            body += &check(&function, parameter);
            pointers += 1;
        }
    }
    let mut program = String::from(include_str!("nulls.h"));
    let _ = write!(
        program,
        "int main(int argc, char **argv)\n{{\n    int got;\n    const char *path = argv[argc - 1];\n    \
               snprintf(file, sizeof file, \"%s.state\", argv[0]);\n"
    );
    program += &body;
    program += "    return 0;\n}\n";
    let source = scratch().join("nulls.c");
    std::fs::write(&source, program).unwrap();
    assert!(pointers > 50, "only {pointers} pointers found in the header");
    run(&build(&source, "nulls", Link::Static), &[&model()]);
}
