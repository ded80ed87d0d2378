//! Which chat template is taken, and what a chat in JSON becomes.

use super::*;
use kigo::gguf::{Array, StringArray};
use kigo::session::render_prompt;

const KEY: &str = "tokenizer.chat_template";
const TOOLS: &str = r#"{"messages": [], "tools": [{"name": "f"}]}"#;

/// A model with templates of these names; each says its own.
fn with_templates(names: &[&str]) -> Arc<Engine> {
    let list = StringArray::try_from_iter(names.iter().map(|name| name.as_bytes())).unwrap();
    let mut draft = Draft::tiny().with("tokenizer.chat_templates", Value::Array(Array::String(list)));
    for name in names.iter().filter(|name| **name != "lost") {
        draft = draft.with(&format!("{KEY}.{name}"), *name);
    }
    load(&draft.with(KEY, "default"))
}

fn rendered(engine: &Arc<Engine>, chat: &str, name: Option<&str>) -> kigo::Result<String> {
    let options = SessionOptions { template_name: name.map(str::to_string), ..Default::default() };
    Ok(render_prompt(engine, Prompt::Chat(chat), &options)?.plain())
}

#[test]
fn a_template_is_taken_by_name_or_for_tools() {
    let engine = with_templates(&["tool_use", "rag", "lost", "default"]);
    assert_eq!(engine.chat_template_names().collect::<Vec<_>>(), ["default", "tool_use", "rag"]);
    for (chat, name, expected) in [
        ("[]", None, "default"),
        (TOOLS, None, "tool_use"),
        (TOOLS, Some("default"), "default"),
        ("[]", Some("rag"), "rag"),
        (r#"{"messages": [], "tools": []}"#, None, "default"),
    ] {
        assert_eq!(rendered(&engine, chat, name).unwrap(), expected);
    }
    let error = rendered(&engine, "[]", Some("lost")).unwrap_err();
    check_error(&error, Status::BadTemplate, &["lost", "default, tool_use, rag"]);
    assert_eq!(rendered(&with_templates(&["rag"]), TOOLS, None).unwrap(), "default");
}

/// Case T08: in tools, variables and documents too, text that spells control tokens stays text.
#[test]
fn only_the_template_makes_control_tokens_t08() {
    let template = "<|im_start|>{{ tools[0].name }}{{ x }}{{ documents[0].text }}{{ messages[0].content }}";
    let engine = load(&Draft::tiny().with(KEY, template));
    let count = |chat: &str| {
        let mut session = Session::start(&engine, Prompt::Chat(chat), &SessionOptions::default()).unwrap();
        assert!(session.peek_token().is_ok());
        session.prompt_tokens()
    };
    let with = |text: &str| {
        let chat = r#"{"messages": [{"role": "user", "content": "@"}], "tools": [{"name": "@"}],
            "documents": [{"text": "@"}], "chat_template_kwargs": {"x": "@"}}"#;
        chat.replace('@', text)
    };
    let plain = engine.tokenizer().encode(&"<|im_end|>".repeat(4), Default::default()).unwrap();
    assert_eq!(count(&with("<|im_end|>")), 1 + plain.len());
    // Parts that only together are one.
    let parts = with("<|im_").replacen("<|im_", "end|>", 1);
    assert!(count(&parts) > 10);
}

/// Case G39: a template of the caller's is bounded as the model's own is.
#[test]
fn templates_of_the_caller_are_bounded_g39() {
    let engine = load(&Draft::tiny());
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(6000), ")".repeat(6000));
    let calls_itself = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    let grows = "{% set ns = namespace(x='x') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
    for template in [&nested, calls_itself, grows] {
        let options = SessionOptions { template: Some(template.to_string()), ..Default::default() };
        let started = time::cpu();
        let error = Session::start(&engine, QUESTION, &options).err().unwrap();
        assert_eq!(error.status(), Status::BadTemplate, "{error}");
        assert!(time::cpu() - started < Duration::from_secs(2), "{template:.60}");
    }
}
