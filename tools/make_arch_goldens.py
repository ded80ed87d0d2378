#!/usr/bin/env python3
"""Write tests/data/arch: a tiny file of every architecture with random f32 weights, and the logits of llama.cpp for it.

For each shape `tiny-X` of gguf_shapes.py there are X.gguf and X.json:

  reference  who computed the logits: llama.cpp in f32, or transformers in f32 where llama.cpp knowingly does otherwise
  agreement  the largest relative error of transformers against llama.cpp, over all prompts and all their positions;
             of one position: |a - b| / |b| with the Euclidean norm. Absent where transformers is the reference.
  n_vocab    how many logits a position has
  prompts    a list of
    n_ctx      how many positions the context had: the long factors of Phi-3 apply where it exceeds the original length
    tokens     the ids, from position 0; no token is added
    positions  of the tokens whose logits follow, in rising order
    logits     one list of `n_vocab` numbers for each of `positions`; each reads back as the same f32

The whole prompt is one sequence, however it is cut into batches. In Rust:

  let golden: Value = serde_json::from_slice(&std::fs::read("tests/data/arch/llama.json")?)?;
  let list = |value: &Value, key: &str| value[key].as_array().unwrap().clone();
  for prompt in list(&golden, "prompts") {
      let tokens: Vec<u32> = list(&prompt, "tokens").iter().map(|t| t.as_u64().unwrap() as u32).collect();
      for (position, logits) in list(&prompt, "positions").iter().zip(list(&prompt, "logits")) {
          // Compare `logits` with what follows tokens[..=position].
      }
  }

Prompts of models with experts are chosen so that no routing decision is close; an implementation that rounds more
than f32 does takes the same experts. Needs what hf_reference.py and llama_reference.py need.

  make_arch_goldens.py             writes all files
  make_arch_goldens.py qwen2 gpt2  writes those of some shapes
  make_arch_goldens.py --check     writes nothing, and fails where the files differ from what would be written
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import hf_archs
import hf_reference as hf
import llama_reference
import numpy as np
import synth_gguf
import transformers
from gguf_shapes import SHAPES

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "arch"
# Lengths of prompts and the positions whose logits are stored: around the window of 16, around a page of the cache.
PROMPTS = {7: range(7), 61: [0, 7, 15, 16, 17, 31, 47, 60], 200: [0, 15, 16, 17, 63, 64, 130, 199]}
# Beyond the original context of Phi-3.
LONG_PROMPT = {300: [0, 64, 200, 255, 256, 257, 280, 299]}
# In standard deviations of the router's logits.
MIN_GAP = 4e-3
# Of one implementation in f32 against the other.
MAX_ERROR = 5e-5
TRANSFORMERS_ONLY = ("phi3-window",)


def random_tokens(model, n_vocab, n):
    """A prompt that only depends on the arguments and, where experts are chosen, on how close the choices are."""
    for seed in range(1000):
        tokens = np.random.default_rng([seed, n]).integers(0, n_vocab, n).tolist()
        gap = hf_archs.routing_gap(model, tokens)
        if gap is None or gap >= MIN_GAP:
            return tokens
    sys.exit(f"no prompt of {n} tokens has clear routing")


def errors(found, expected):
    """The relative error at each position."""
    return np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)


def golden(library, name, path):
    """What X.json says."""
    shape, model = SHAPES[f"tiny-{name}"], hf_archs.load_model(path)
    plan = PROMPTS | (LONG_PROMPT if shape.rope_factors and shape.arch == "phi3" else {})
    prompts, worst = [], 0.0
    for n, positions in plan.items():
        tokens, n_ctx = random_tokens(model, shape.n_vocab, n), 512 if n > 256 else 256
        logits = hf_archs.logits(model, tokens)
        if name not in TRANSFORMERS_ONLY:
            judge = llama_reference.LlamaCpp(library, path, n_ctx)
            theirs, logits = logits, judge.logits(tokens)
            judge.close()
            worst = max(worst, errors(theirs, logits).max())
        kept = [[hf.number(x) for x in logits[p]] for p in positions]
        prompts.append({"n_ctx": n_ctx, "tokens": tokens, "positions": list(positions), "logits": kept})
    out = {"reference": llama_reference.VERSION, "agreement": hf.number(worst)}
    if name in TRANSFORMERS_ONLY:
        out = {"reference": f"transformers {transformers.__version__}"}
    print(f"{name}: transformers and llama.cpp differ by {worst:.1e}", flush=True)
    if worst > MAX_ERROR:
        sys.exit(f"{name}: that is more than {MAX_ERROR}")
    return out | {"n_vocab": shape.n_vocab, "prompts": prompts}


def write(path, value):
    """One line per field and per prompt, so that a change shows as a change of few lines."""
    prompts = ",\n".join(json.dumps(prompt, separators=(",", ":")) for prompt in value["prompts"])
    head = [f"{json.dumps(key)}:{json.dumps(field)}" for key, field in value.items() if key != "prompts"]
    path.write_text("{" + ",\n".join(head) + ',\n"prompts":[\n' + prompts + "\n]}\n", encoding="utf-8")


def differences(old, new):
    """Whether the same is said but for the last digits of logits."""
    if [p["tokens"] for p in old["prompts"]] != [p["tokens"] for p in new["prompts"]]:
        return True
    pairs = zip(old["prompts"], new["prompts"])
    return any(errors(np.array(a["logits"]), np.array(b["logits"])).max() > MAX_ERROR for a, b in pairs)


def main():
    names = [name.removeprefix("tiny-") for name in SHAPES if name.startswith("tiny-")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="*", choices=[*names, []], help="shapes without their prefix; all by default")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    library = llama_reference.load_library()
    OUT.mkdir(parents=True, exist_ok=True)
    stale = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.name or names:
            path = (Path(folder) if args.check else OUT) / f"{name}.gguf"
            synth_gguf.write(path, SHAPES[f"tiny-{name}"], "f32")
            new = golden(library, name, path)
            if not args.check:
                write(OUT / f"{name}.json", new)
                continue
            old = json.loads((OUT / f"{name}.json").read_text(encoding="utf-8"))
            if path.read_bytes() != (OUT / f"{name}.gguf").read_bytes() or differences(old, new):
                stale.append(name)
    if stale:
        sys.exit(f"other than the files of tests/data/arch: {', '.join(stale)}")


if __name__ == "__main__":
    main()
