#!/usr/bin/env python3
"""Renders the templates of tests/data/chat with Hugging Face transformers and writes tests/data/chat/goldens.json.

Usage: make_chat_goldens.py [MODEL.gguf]

With a GGUF file of SmolLM2-135M-Instruct, its own template is rendered too; only the rendered text is stored.
Needs: pip install transformers jinja2 (and gguf for MODEL.gguf).
"""

import datetime
import json
import pathlib
import sys

import transformers.utils.chat_template_utils as hf

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
    ("python", ONE, {}),
    ("python", CHAT, {}),
]


def render(template, messages, options):
    """The text, or None and the error, as apply_chat_template gives it."""
    try:
        rendered = hf.render_jinja_template(
            conversations=[messages],
            tools=options.get("tools"),
            chat_template=template,
            add_generation_prompt=options.get("add_generation_prompt", False),
            **TOKENS,
            **options.get("variables", {}),
        )
    except Exception as error:  # whatever a template can raise is a failed rendering
        return {"error": str(error)}
    return {"expected": rendered[0][0]}


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
        cases.append({"template": name, "messages": messages, "options": options, **render(template, messages, options)})
    smollm2 = []
    if len(sys.argv) > 1:
        template = model_template(sys.argv[1])
        for messages in (ONE, SYSTEM, CHAT):
            options = {"add_generation_prompt": True}
            smollm2.append({"messages": messages, "options": options, **render(template, messages, options)})
    now = int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp())
    goldens = {"now": now, **TOKENS, "cases": cases, "smollm2": smollm2}
    text = json.dumps(goldens, ensure_ascii=False, indent=1)
    (DATA / "goldens.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
