#!/usr/bin/env python3
"""Write tests/data/logits/*.json: what SmolLM2-135M-Instruct (Q4_1) must answer to eight prompts.

The reference is transformers in f32 on the dequantised weights (see hf_reference.py, which names what to install).
`tools/fetch.py smollm2` gets the model.

  make_logits_goldens.py MODEL.gguf              writes the files
  make_logits_goldens.py MODEL.gguf --dry-run    only prints lengths and gaps
"""

import argparse
import sys
from pathlib import Path

import hf_reference as hf

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "logits"
N_GREEDY = 64
# Every STRIDE-th of the 49152 logits is stored, to keep the files small.
STRIDE = 64
# A greedy step closer than this could be decided by rounding.
MIN_GAP = 5e-3
END = "<|im_end|>"


def chat(*turns):
    """A conversation in the model's chat format that waits for the assistant."""
    text = "".join(f"<|im_start|>{role}\n{content}{END}\n" for role, content in turns)
    return text + "<|im_start|>assistant\n"


# Texts in which the control tokens stand for themselves.
PROMPTS = {
    "prose-short": "The old lighthouse keeper climbed the narrow stairs one last time and looked out over the",
    "prose-long": (
        "When the railway came to the valley, nobody in the village believed that it would stay. Engineers had "
        "arrived before, with their brass instruments and striped poles, and they had all gone home again after "
        "the first winter. This time, however, the surveyors brought their families. They rented the empty rooms "
        "above the bakery, sent their children to the small school beside the church, and paid for everything in "
        "coins that still smelled of the mint. By April the first sleepers lay across the meadow, black with "
        "tar, and the cows had learned to step over them without looking down.\n\n"
        "Old Marta, who kept the inn, counted the strangers at her tables and wrote the number on the wall with "
        "a piece of chalk. Twelve in May, thirty in June, fifty-one on the evening when the bridge was finished. "
        "She had never cooked for so many people, and she had never listened to so many languages at once. The "
        "men from the coast argued about wine, the men from the mountains argued about snow, and the foreman, a "
        "quiet woman with a scar across her chin, argued with nobody at all. She sat by the window, drew bridges "
        "on the backs of old menus, and drank her tea so slowly that it was always cold before the cup was empty.\n\n"
        "One night in August the river rose. It had rained for nine days in the hills, and the water came down "
        "brown and fast, carrying whole trees and once a wooden shed with a frightened goat on its roof. "
        "Everybody ran to the bridge with ropes and lanterns. The foreman stood in the middle of it, her hand on "
        "the new iron rail, feeling how it trembled. She did not shout. She only said"
    ),
    "code-c": (
        "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n\n"
        "/* A growing buffer of bytes. */\n"
        "struct buffer {\n    unsigned char *data;\n    size_t len;\n    size_t capacity;\n};\n\n"
        "static int buffer_reserve(struct buffer *b, size_t extra)\n{\n"
        "    if (b->capacity - b->len >= extra)\n        return 0;\n"
        "    size_t capacity = b->capacity ? b->capacity : 64;\n"
        "    while (capacity - b->len < extra)\n        capacity *= 2;\n"
        "    unsigned char *data = realloc(b->data, capacity);\n"
        "    if (data == NULL)\n        return -1;\n"
        "    b->data = data;\n    b->capacity = capacity;\n    return 0;\n}\n\n"
        "static int buffer_append(struct buffer *b, const void *bytes, size_t n)\n{\n"
    ),
    "code-python": (
        "def fibonacci(n: int) -> list[int]:\n"
        '    """Return the first n Fibonacci numbers."""\n'
        "    numbers = [0, 1]\n"
        "    while len(numbers) < n:\n"
        "        numbers.append("
    ),
    "chat-haiku": chat(
        ("system", "You are a poet who answers in plain English and explains every choice."),
        ("user", "Explain in detail what a season word is in Japanese poetry. Then write three haiku about rain at 14:37."),
    ),
    "chat-turns": chat(
        ("system", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
        ("user", "What is the capital of France?"),
        ("assistant", "The capital of France is Paris."),
        ("user", "Write a long travel guide for a first visit to the city: seven days, with museums, parks, music and food."),
    ),
    "numbers": (
        "date,station,temperature,rain\n"
        "2024-01-01,A17,3.25,0.0\n2024-01-02,A17,-1.5,12.75\n2024-01-03,A17,0.0,4.125\n"
        "2024-01-04,A17,2.875,0.5\n2024-01-05,A17,100,1e-3\n2024-01-06,A17,6.02214076e23,0x1F\n"
        "2024-01-07,A17,3.14159265358979,1,234,567\n"
    ),
    "languages": (
        "Le chat dort sur la fenêtre. Die Straße ist naß, und der Bär trägt Schuhe. "
        "El niño comió una manzana. Быстрая коричневая лиса. "
        "今日はいい天気ですね。我喜欢喝茶。 안녕하세요! مرحبا بالعالم 👩‍👩‍👧 ½ × ∞ ≠ 7\t\tEnglish again: the quick brown"
    ),
}


def check_with_llama_cpp(path, prompts):
    """Compares the token ids with those of llama.cpp, where its Python package is installed."""
    try:
        import llama_cpp
    except ImportError:
        print("llama_cpp is not installed: token ids not compared with it")
        return
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    for name, (text, tokens) in prompts.items():
        theirs = model.tokenize(text.encode(), add_bos=False, special=True)
        assert theirs == tokens, f"{name}: llama.cpp has {theirs}, transformers {tokens}"
    print("token ids equal those of llama.cpp")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    tokenizer = hf.load_tokenizer(args.model)
    prompts = {name: (text, tokenizer.encode(text).ids) for name, text in PROMPTS.items()}
    check_with_llama_cpp(args.model, prompts)
    model = hf.load_model(args.model)
    end = model.config.eos_token_id
    failed = False
    OUT.mkdir(parents=True, exist_ok=True)
    for name, (text, tokens) in prompts.items():
        golden = hf.golden(model, tokens, N_GREEDY, STRIDE)
        ended = end in golden["greedy"]
        bad = ended or golden["greedy_gap"] < MIN_GAP
        failed |= bad
        print(f"{name}: {len(tokens)} tokens, gap {golden['greedy_gap']:.4f}{' ENDS' if ended else ''}{' BAD' if bad else ''}")
        if args.dry_run:
            print("   ", repr(tokenizer.decode(golden["greedy"])))
        else:
            hf.write(OUT / f"{name}.json", {"text": text, **golden})
    sys.exit("some prompts end early or come to a near-tie: choose others" if failed else 0)


if __name__ == "__main__":
    main()
