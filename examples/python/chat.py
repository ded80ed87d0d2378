#!/usr/bin/env python3
"""A chat: read a line, stream the answer, and remember the conversation until the context is full.

    python3 chat.py model.gguf [device]
"""

import json
import sys

import kigo


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: chat.py model.gguf [device]")
    conversation = []
    with kigo.Model(sys.argv[1], device=sys.argv[2] if len(sys.argv) > 2 else "auto") as model:
        print("> ", end="", flush=True)
        for line in sys.stdin:
            conversation.append({"role": "user", "content": line.rstrip("\n")})
            answer = ""
            for piece in model.generate(json.dumps(conversation), prompt_format="chat"):
                print(piece, end="", flush=True)
                answer += piece
            conversation.append({"role": "assistant", "content": answer})
            print("\n> ", end="", flush=True)


if __name__ == "__main__":
    try:
        main()
    except kigo.Error as error:
        sys.exit(f"chat: {error}")
