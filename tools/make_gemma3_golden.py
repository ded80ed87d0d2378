#!/usr/bin/env python3
"""Write tests/data/gemma3.json: what Gemma 3 270M (Q4_K_M) makes of an English text, by llama.cpp with a cache of f32.

The text is chapter 96 of Herman Melville's "Moby-Dick" (1851), which is in the public domain: tests/data/gemma3.txt.
Needs what hf_reference.py and llama_reference.py need; `tools/fetch.py gemma3` gets the model (253 MB).

  tokens      BOS and the first 1999 tokens of the text; one sequence in a context of `n_ctx` positions
  mean_nll    of tokens 1 to 1999, each given all before it, in nats; `perplexity` is its exponential
  nll         sums of the same over tokens 1 to 99, 100 to 199, and so on, to find where a difference begins
  transformers_perplexity  of the dequantised weights in f32: llama.cpp rounds activations to 8 bits
  greedy      `next` are the 32 most likely tokens, one after the other, that follow `tokens`; `gap` is the least
              difference between the two largest logits on the way
"""

import os
from pathlib import Path

import fetch
import hf_archs
import hf_reference as hf
import llama_reference
import numpy as np
import torch

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"
N_TOKENS = 2000
N_CTX = 2048
# Tokens whose logits are in memory at a time.
CHUNK = 200
N_GREEDY = 32
PROMPT = "The old lighthouse keeper climbed the narrow stairs one last time and looked out over the"


def nll(logits, tokens):
    """The negative logarithm of the probability of each token, given logits `[n, n_vocab]`."""
    wide = logits.astype(np.float64)
    largest = wide.max(axis=1)
    return largest + np.log(np.exp(wide - largest[:, None]).sum(axis=1)) - wide[np.arange(len(tokens)), tokens]


def llama_nll(judge, tokens):
    out = []
    for start in range(0, len(tokens) - 1, CHUNK):
        part = tokens[start : start + CHUNK]
        logits = judge.logits(part) if start == 0 else judge.extend(part, start, range(len(part)))
        targets = tokens[start + 1 : start + CHUNK + 1]
        out.extend(nll(logits[: len(targets)], targets))
    return np.array(out)


@torch.inference_mode()
def transformers_nll(path, tokens):
    model = hf_archs.load_model(path)
    hidden = model.model(torch.tensor([tokens]), use_cache=False).last_hidden_state[0]
    out = []
    for start in range(0, len(tokens) - 1, CHUNK):
        targets = tokens[start + 1 : start + CHUNK + 1]
        out.extend(nll(model.lm_head(hidden[start : start + len(targets)]).numpy(), targets))
    return np.array(out)


def greedy(judge, text):
    tokens = judge.tokenize(text, add_special=True)
    logits, chosen, gap = judge.logits(tokens, [len(tokens) - 1])[0], [], np.inf
    for i in range(N_GREEDY):
        best = np.argsort(-logits, kind="stable")[:2]
        gap = min(gap, float(logits[best[0]] - logits[best[1]]))
        chosen.append(int(best[0]))
        logits = judge.extend(chosen[-1:], len(tokens) + i, [0])[0]
    return {"text": text, "tokens": tokens, "next": chosen, "next_text": judge.text(chosen), "gap": hf.number(gap)}


def main():
    path = fetch.fetch("gemma3")[0]
    text = (DATA / "gemma3.txt").read_text(encoding="utf-8")
    judge = llama_reference.LlamaCpp(llama_reference.load_library(), path, N_CTX, CHUNK, os.cpu_count())
    tokens = judge.tokenize(text, add_special=True)[:N_TOKENS]
    assert len(tokens) == N_TOKENS and tokens[0] == 2
    theirs = llama_nll(judge, tokens)
    exact = transformers_nll(path, tokens)
    sums = [theirs[max(0, i - 1) : i + 99].sum() for i in range(0, N_TOKENS, 100)]
    assert np.isclose(sum(sums), theirs.sum())
    golden = {
        "model": path.name,
        "reference": llama_reference.VERSION,
        "n_ctx": N_CTX,
        "tokens": tokens,
        "mean_nll": round(theirs.mean(), 6),
        "perplexity": round(np.exp(theirs.mean()), 4),
        "nll": [round(x, 4) for x in sums],
        "transformers_perplexity": round(np.exp(exact.mean()), 4),
        "greedy": greedy(judge, PROMPT),
    }
    hf.write(DATA / "gemma3.json", golden)
    print({key: value for key, value in golden.items() if key != "tokens"})


if __name__ == "__main__":
    main()
