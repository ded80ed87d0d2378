#!/usr/bin/env python3
"""Write a haiku that contains the current minute in words, which nobody can have written beforehand.

A small model does not always obey, so up to 32 haiku are generated, each with a seed of its own.

    python3 haiku.py model.gguf [device]
"""

import re
import sys
import time

import kigo

MAX_ATTEMPTS = 32
SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen""".split()
TENS = ["twenty", "thirty", "forty", "fifty"]


def minute_in_words(minute):
    if minute < 20:
        return SMALL[minute]
    ten, one = TENS[minute // 10 - 2], minute % 10
    return f"{ten}-{SMALL[one]}" if one else ten


def contains(text, word):
    """Whether the text holds the whole word, "forty two" for "forty-two" included."""
    pattern = r"(?<![a-z-])" + word.replace("-", "[- ]") + r"(?![a-z-])"
    return re.search(pattern, text, re.IGNORECASE) is not None


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: haiku.py model.gguf [device]")
    now = int(time.time())
    word = minute_in_words(time.localtime(now).tm_min)
    prompt = f'Write a haiku of three short lines about the number {word}. Each line contains the word "{word}".'
    print("minute:", word)
    with kigo.Model(sys.argv[1], device=sys.argv[2] if len(sys.argv) > 2 else "auto") as model:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            haiku = ""
            print()
            for piece in model.generate(prompt, prompt_format="user", max_tokens=48, seed=now * MAX_ATTEMPTS + attempt):
                print(piece, end="", flush=True)
                haiku += piece
            print(f"\n\n[attempt {attempt}: {'yes' if contains(haiku, word) else 'no'}]")
            if contains(haiku, word):
                return
    sys.exit(f'haiku: none of {MAX_ATTEMPTS} attempts contains "{word}"')


if __name__ == "__main__":
    try:
        main()
    except kigo.Error as error:
        sys.exit(f"haiku: {error}")
