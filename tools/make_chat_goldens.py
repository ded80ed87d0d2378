#!/usr/bin/env python3
"""Renders chat templates with Hugging Face transformers, as apply_chat_template does, for tests/chat.rs.

Usage: make_chat_goldens.py MODEL.gguf

Writes tests/data/chat/goldens.json, with what the templates of that folder and that of MODEL.gguf, which is
SmolLM2-135M-Instruct, make of some chats; and tests/data/chat/templates.json, with lengths and sums of what the templates
make that `fetch.py templates` fetches.
Needs: pip install transformers jinja2 gguf. Made with transformers 5.24.0 and Jinja2 3.1.6.
"""

import datetime
import json
import pathlib
import sys

import jinja2
import transformers.utils.chat_template_utils as hf

import fetch

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data" / "chat"
NOW = datetime.datetime(2024, 7, 26, 9, 5, 3)


class Frozen(datetime.datetime):
    """A clock that stands still; its moment is the golden's `now`, in UTC."""

    @classmethod
    def now(cls, tz=None):
        return NOW


WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a <city> & \"more\".",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}},
            "required": ["city"],
        },
    },
}

ONE = [{"role": "user", "content": "Hello, what is a banana? "}]
SYSTEM = [{"role": "system", "content": " You are terse.\n"}] + ONE
CHAT = SYSTEM + [
    {"role": "assistant", "content": "\nA fruit. "},
    {"role": "user", "content": "Größe? 你好 👍 'quoted' \"double\" <&>"},
]
NO_SYSTEM = CHAT[1:]
TOOLS = [
    {"role": "user", "content": "Weather in Köln?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": 2, "x": 1.0}}}
        ],
    },
    {"role": "tool", "content": "{\"sky\": \"blue\"}"},
    {"role": "tool", "content": "warm"},
    {"role": "user", "content": "Thanks"},
]
THINKING = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "<think>\nfour, I think\n</think>\n\n4"},
    {"role": "user", "content": "3+3?"},
    {"role": "assistant", "reasoning": "six", "content": "6"},
]
PARTS = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": " What is this? "}],
    }
]
CONTINUED = ONE + [{"role": "assistant", "content": "A yellow "}]
CONTINUED_PART = ONE + [{"role": "assistant", "content": [{"type": "text", "text": "A yellow "}]}]
BAD_ORDER = ONE + ONE
BAD_ROLE = [{"role": "user", "content": "x"}, {"role": "oracle", "content": "y"}]

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CASES = [
    ("chatml", ONE, {"add_generation_prompt": True}),
    ("chatml", CHAT, {"add_generation_prompt": True}),
    ("chatml", NO_SYSTEM, {}),
    ("headers", SYSTEM, {"add_generation_prompt": True}),
    ("headers", CHAT, {"tools": [WEATHER, WEATHER]}),
    ("headers", TOOLS, {"tools": [WEATHER], "add_generation_prompt": True}),
    ("inst", ONE, {}),
    ("inst", CHAT, {}),
    ("inst", BAD_ORDER, {}),
    ("inst", BAD_ROLE, {}),
    ("turns", NO_SYSTEM, {"add_generation_prompt": True}),
    ("turns", PARTS, {"add_generation_prompt": True}),
    ("turns", CHAT, {}),
    ("reasoning", CHAT, {"add_generation_prompt": True}),
    ("reasoning", CHAT, {"add_generation_prompt": True, "variables": {"enable_thinking": False}}),
    ("reasoning", TOOLS, {"add_generation_prompt": True}),
    ("reasoning", THINKING, {}),
    ("chatml", CONTINUED, {"continue_final_message": True}),
    ("turns", CONTINUED_PART, {"continue_final_message": True}),
    ("inst", BAD_ORDER[:1], {"continue_final_message": True}),
    ("python", ONE, {}),
    ("python", CHAT, {}),
    ("tagged", CHAT, {"add_generation_prompt": True}),
    ("tagged", CHAT[:3], {}),
    ("tagged", BAD_ROLE, {}),
    ("filters", ONE, {}),
    ("filters", CHAT, {}),
]


def call(name, arguments, id="call12345"):
    return {"type": "function", "id": id, "function": {"name": name, "arguments": arguments}}


def answer(id, name, content):
    return {"role": "tool", "tool_call_id": id, "name": name, "content": content}


ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"type": "number", "description": "first"},
                "b": {"type": ["number", "null"], "description": "second"},
                "mode": {"type": "string", "enum": ["fast", "exact"], "default": "fast"},
                "list": {"type": "array", "items": {"type": "string"}},
                "o": {"type": "object", "properties": {"x": {"type": "integer"}}},
            },
            "required": ["a", "b"],
        },
        "return": {"type": "number"},
    },
}
ONE_CALL = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather in Köln?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [call("get_weather", {"city": "Köln", "days": 2, "x": 1.0, "flag": True, "none": None})],
    },
    answer("call12345", "get_weather", '{"sky": "blue"}'),
    {"role": "assistant", "content": "Blue sky."},
    {"role": "user", "content": "Thanks"},
]
TWO_CALLS = [
    {"role": "user", "content": "Add."},
    {
        "role": "assistant",
        "content": "Sure.",
        "tool_calls": [call("add", {"a": 1, "b": 2.5}, "aaaaaaaa1"), call("get_weather", {"city": "Rome"}, "aaaaaaaa2")],
    },
    answer("aaaaaaaa1", "add", "3.5"),
    answer("aaaaaaaa2", "get_weather", "sun"),
]
NO_CONTENT = [
    {"role": "user", "content": "Add."},
    {"role": "assistant", "content": None, "tool_calls": [call("add", '{"a": 1}')]},
    answer("call12345", "add", "3.5"),
]
THOUGHTS = THINKING + [{"role": "user", "content": "more"}]
TEXT_PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "this?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "That."}]},
    {"role": "user", "content": "ok"},
]
DEVELOPER = [{"role": "developer", "content": "Rules."}, {"role": "user", "content": "x"}]
SIGNS = [{"role": "user", "content": "Größe 你好 👍 'q' \"d\" <&> \\ {{ x }} {% y %}\n\ttab \u2028"}]
ASK = {"add_generation_prompt": True}
FAMILY_CASES = [
    (ONE, ASK),
    (SYSTEM, ASK),
    (CHAT, ASK),
    (CHAT, {}),
    (NO_SYSTEM, ASK),
    (ONE_CALL, {**ASK, "tools": [WEATHER, ADD]}),
    (TWO_CALLS, {**ASK, "tools": [WEATHER, ADD]}),
    (NO_CONTENT, {**ASK, "tools": [ADD]}),
    (THOUGHTS, ASK),
    (THOUGHTS, {}),
    (THOUGHTS, {**ASK, "variables": {"enable_thinking": False}}),
    (THOUGHTS, {**ASK, "variables": {"enable_thinking": True}}),
    (ONE, {**ASK, "variables": {"thinking": True, "reasoning_effort": "high"}}),
    (TEXT_PARTS, ASK),
    (PARTS, ASK),
    (DEVELOPER, ASK),
    (SIGNS, ASK),
    (CHAT[:3], {}),
    (CHAT[:3], {"continue_final_message": True}),
    (BAD_ORDER, ASK),
    (BAD_ROLE, ASK),
    (ONE, {**ASK, "tools": [WEATHER, ADD], "variables": {"documents": [{"title": "T", "text": "body"}]}}),
    (SYSTEM, {**ASK, "tools": [ADD], "variables": {"tools_in_user_message": False, "builtin_tools": ["python"]}}),
    (SYSTEM, {**ASK, "variables": {"model_identity": "I", "date_string": "1 Jan 2020", "xml_tools": [ADD]}}),
    ([], ASK),
]


def render(template, messages, options):
    """The text, or None and the error, as apply_chat_template gives it."""
    try:
        rendered = hf.render_jinja_template(
            conversations=[hf._normalize_chat_messages(messages)],
            tools=options.get("tools"),
            chat_template=template,
            add_generation_prompt=options.get("add_generation_prompt", False),
            continue_final_message=options.get("continue_final_message", False),
            **TOKENS,
            **options.get("variables", {}),
        )
    except Exception as error:  # whatever a template can raise is a failed rendering
        return {"error": str(error), "is_raised": type(error) is jinja2.exceptions.TemplateError}
    return {"expected": rendered[0][0]}


def checked(template, messages, options):
    """Length and sum of the text in UTF-8; the message that the template raises; None for any other failure."""
    rendered = render(template, messages, options)
    if "expected" in rendered:
        text = rendered["expected"].encode()
        return [len(text), f"{fnv(text):016x}"]
    return rendered["error"] if rendered["is_raised"] else None


def fnv(data):
    """FNV-1a of 64 bits."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value


def source_of(path):
    """The chat template in a fetched file."""
    text = path.read_text(encoding="utf-8")
    return text if path.suffix == ".jinja" else next(m["chat_template"] for m in json.loads(text) if m.get("chat_template"))


def model_template(path):
    """`tokenizer.chat_template` of the GGUF file at `path`."""
    import gguf

    field = gguf.GGUFReader(path).fields["tokenizer.chat_template"]
    return bytes(field.parts[field.data[0]]).decode()


def main():
    hf.datetime = Frozen
    cases = []
    for name, messages, options in CASES:
        template = (DATA / f"{name}.jinja").read_text(encoding="utf-8")
        rendered = render(template, messages, options)
        rendered.pop("is_raised", None)
        cases.append({"template": name, "messages": messages, "options": options, **rendered})
    template = model_template(sys.argv[1])
    smollm2 = [{"messages": m, "options": ASK, **render(template, m, ASK)} for m in (ONE, SYSTEM, CHAT)]
    now = int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp())
    goldens = {"now": now, **TOKENS, "cases": cases, "smollm2": smollm2}
    text = json.dumps(goldens, ensure_ascii=False, indent=1)
    (DATA / "goldens.json").write_text(text + "\n", encoding="utf-8")
    sums = {p.name: [checked(source_of(p), m, o) for m, o in FAMILY_CASES] for p in fetch.fetch("templates")}
    lines = [f"{json.dumps(name)}: {json.dumps(values, ensure_ascii=False)}" for name, values in sums.items()]
    chats = [json.dumps({"messages": m, "options": o}, ensure_ascii=False) for m, o in FAMILY_CASES]
    text = '{"cases": [\n' + ",\n".join(chats) + '\n],\n"templates": {\n' + ",\n".join(lines) + "\n}}\n"
    (DATA / "templates.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
