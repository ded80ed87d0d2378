//! Chat templates: texts of Hugging Face transformers, bounds, and the guard of control tokens.

use std::time::{Duration, UNIX_EPOCH};

use kigo::tokenizer::chat::{ChatTemplate, RenderOptions};
use serde_json::Value;

fn goldens() -> Value {
    serde_json::from_str(include_str!("data/chat/goldens.json")).unwrap()
}

fn template(name: &str) -> String {
    let path = format!("{}/tests/data/chat/{name}.jinja", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// Every difference to Hugging Face, over the cases of the golden file.
#[test]
fn goldens_of_hugging_face() {
    let goldens = goldens();
    let mut differences = Vec::new();
    for (i, case) in goldens["cases"].as_array().unwrap().iter().enumerate() {
        let name = case["template"].as_str().unwrap();
        let options = RenderOptions {
            add_generation_prompt: case["options"]["add_generation_prompt"].as_bool().unwrap_or(false),
            bos_token: goldens["bos_token"].as_str(),
            eos_token: goldens["eos_token"].as_str(),
            tools: case["options"].get("tools"),
            variables: case["options"]["variables"].as_object(),
            now: Some(UNIX_EPOCH + Duration::from_secs(goldens["now"].as_u64().unwrap())),
        };
        let rendered = ChatTemplate::new(&template(name)).and_then(|t| t.render(&case["messages"], &options));
        match (case.get("expected"), rendered) {
            (Some(expected), Ok(text)) if expected == &text => {}
            (None, Err(error)) if error.to_string().contains(case["error"].as_str().unwrap()) => {}
            (expected, found) => differences.push(format!("case {i} ({name}): expected {expected:?}, found {found:?}")),
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
