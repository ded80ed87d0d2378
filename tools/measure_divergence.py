#!/usr/bin/env python3
"""Measure how far llama.cpp itself is from the exact logits of SmolLM2-135M-Instruct (Q4_1), to judge kigo's figure by.

Exact is transformers in f32 on the dequantised weights. The positions are those of the test
`smollm2_diverges_little_from_the_cpu`: the prompts of tests/data/logits in the order of their names, one after the
other and over again in reverse, 2000 in all, as one sequence. Prints the mean and the worst Kullback-Leibler divergence
in nats, and how often both have the same most likely token. Needs what hf_reference.py and llama_reference.py need;
`tools/fetch.py smollm2` gets the model.

    measure_divergence.py                  llama.cpp on this CPU
    measure_divergence.py --tokens FILE    writes the tokens there, separated by spaces, for another program
    measure_divergence.py --logits FILE    that program's logits, [positions, n_vocab] f32, instead of llama.cpp's
"""

import argparse
import json
import os
from pathlib import Path

import fetch
import hf_reference as hf
import numpy as np
import torch

LOGITS = Path(__file__).resolve().parent.parent / "tests" / "data" / "logits"
N_POSITIONS = 2000
N_CTX = 2048
# Tokens whose logits are in memory at a time.
CHUNK = 250


def log_softmax(logits):
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def tokens():
    once = [t for path in sorted(LOGITS.glob("*.json")) for t in json.loads(path.read_text(encoding="utf-8"))["tokens"]]
    return (once + once[::-1])[:N_POSITIONS]


def of_llama_cpp(path, prompt):
    """The logits of a chunk from position `start` on, computed by llama.cpp on this CPU, and its name."""
    import llama_reference

    judge = llama_reference.LlamaCpp(llama_reference.load_library(), path, N_CTX, CHUNK, os.cpu_count())

    def logits(start):
        part = prompt[start : start + CHUNK]
        return judge.logits(part) if start == 0 else judge.extend(part, start, range(len(part)))

    return logits, llama_reference.VERSION


def of_file(path, prompt):
    """The same from a file."""
    all_logits = np.memmap(path, dtype=np.float32, mode="r").reshape(len(prompt), -1)
    return lambda start: np.asarray(all_logits[start : start + CHUNK]), str(path)


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, metavar="FILE")
    parser.add_argument("--logits", type=Path, metavar="FILE")
    args, prompt = parser.parse_args(), tokens()
    assert len(prompt) == N_POSITIONS
    if args.tokens:
        args.tokens.write_text(" ".join(map(str, prompt)), encoding="utf-8")
        return
    path = fetch.fetch("smollm2")[0]
    logits, name = of_file(args.logits, prompt) if args.logits else of_llama_cpp(path, prompt)
    model = hf.load_model(path)
    hidden = model.model(torch.tensor([prompt]), use_cache=False).last_hidden_state[0]
    divergences, same = [], 0
    for start in range(0, N_POSITIONS, CHUNK):
        found = logits(start)
        exact = model.lm_head(hidden[start : start + len(found)]).numpy()
        p, q = log_softmax(exact), log_softmax(found)
        divergences.extend((np.exp(p) * (p - q)).sum(axis=1))
        same += int((exact.argmax(axis=1) == found.argmax(axis=1)).sum())
    mean, worst = np.mean(divergences), np.max(divergences)
    print(f"{name}, {path.name}: {N_POSITIONS} positions, mean divergence {mean:.2e} nats, ", end="")
    print(f"worst {worst:.2e}, same top token {same}")


if __name__ == "__main__":
    main()
