#!/usr/bin/env python3
"""Measure how far llama.cpp itself is from the exact logits of SmolLM2-135M-Instruct (Q4_1), to judge kigo's figure by.

Exact is transformers in f32 on the dequantised weights. The positions are those of the test
`smollm2_diverges_little_from_the_cpu`: the prompts of tests/data/logits in the order of their names, one after the
other and over again in reverse, 2000 in all, as one sequence. Prints the mean and the worst Kullback-Leibler divergence
in nats, and how often both have the same most likely token. Needs what hf_reference.py and llama_reference.py need;
`tools/fetch.py smollm2` gets the model.
"""

import json
import os
from pathlib import Path

import fetch
import hf_reference as hf
import llama_reference
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


@torch.inference_mode()
def main():
    path, prompt = fetch.fetch("smollm2")[0], tokens()
    assert len(prompt) == N_POSITIONS
    judge = llama_reference.LlamaCpp(llama_reference.load_library(), path, N_CTX, CHUNK, os.cpu_count())
    model = hf.load_model(path)
    hidden = model.model(torch.tensor([prompt]), use_cache=False).last_hidden_state[0]
    divergences, same = [], 0
    for start in range(0, N_POSITIONS, CHUNK):
        part = prompt[start : start + CHUNK]
        found = judge.logits(part) if start == 0 else judge.extend(part, start, range(len(part)))
        exact = model.lm_head(hidden[start : start + len(part)]).numpy()
        p, q = log_softmax(exact), log_softmax(found)
        divergences.extend((np.exp(p) * (p - q)).sum(axis=1))
        same += int((exact.argmax(axis=1) == found.argmax(axis=1)).sum())
    mean, worst = np.mean(divergences), np.max(divergences)
    print(f"{llama_reference.VERSION}, {path.name}: {N_POSITIONS} positions, mean divergence {mean:.2e} nats, ", end="")
    print(f"worst {worst:.2e}, same top token {same}")


if __name__ == "__main__":
    main()
