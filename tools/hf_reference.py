"""The judge of the model arithmetic: Hugging Face transformers in f32 on the dequantised weights of a GGUF file.

Shared by the scripts that write golden files. Needs: pip install torch transformers accelerate gguf.
"""

import json
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf.quants import dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM

# How many of the largest logits are stored beside the regular sample of all.
TOP = 20

# Names of a layer's weights in GGUF and in transformers.
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_name(name):
    """The name that transformers gives to the GGUF tensor `name` of a llama model."""
    top = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    if name in top:
        return top[name]
    _, layer, role, kind = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[role]}.{kind}"


def half_split(weight, heads):
    """Rows of a Q or K projection from GGUF's order (rotary pairs adjacent) to transformers' (halves)."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def load_model(path):
    """The model of a llama GGUF file in f32, after checking that it holds exactly the dequantised weights."""
    path = Path(path)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    reader = gguf.GGUFReader(path)
    heads = {"attn_q": "llama.attention.head_count", "attn_k": "llama.attention.head_count_kv"}
    weights = model.state_dict()
    unseen = set(weights)
    for tensor in reader.tensors:
        expected = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        role = tensor.name.split(".")[-2]
        if role in heads:
            expected = half_split(expected, reader.fields[heads[role]].contents())
        name = hf_name(tensor.name)
        assert np.array_equal(weights[name].numpy(), expected.reshape(weights[name].shape)), f"{tensor.name} differs"
        unseen.discard(name)
    if "output.weight" not in {tensor.name for tensor in reader.tensors}:
        assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"]), "the head is not tied"
        unseen.discard("lm_head.weight")
    assert not unseen, f"not from the file: {sorted(unseen)}"
    rope, eps = model.config.rope_parameters["rope_theta"], model.config.rms_norm_eps
    assert rope == reader.fields["llama.rope.freq_base"].contents(), f"rope theta {rope}"
    assert eps == reader.fields["llama.attention.layer_norm_rms_epsilon"].contents(), f"rms eps {eps}"
    return model


def bpe_tokenizer(tokens, merges, control):
    """The byte-level BPE whose pre-tokenizer GGUF calls `smollm`: single digits, then the GPT-2 pattern."""
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab, [tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def load_tokenizer(path):
    """The tokenizer of a GGUF file, which must be of the kind that `bpe_tokenizer` makes."""
    fields = gguf.GGUFReader(path).fields
    model, pre, tokens, types, merges = (
        fields[f"tokenizer.ggml.{key}"].contents() for key in ("model", "pre", "tokens", "token_type", "merges")
    )
    assert (model, pre) == ("gpt2", "smollm"), f"{path}: tokenizer {model} {pre}"
    return bpe_tokenizer(tokens, merges, [t for t, kind in zip(tokens, types) if kind == gguf.TokenType.CONTROL])


def number(value):
    """The shortest decimal that reads back as the same f32."""
    return float(str(np.float32(value)))


def describe(position, logits, stride):
    """What is stored of the logits `[n_vocab]` that follow the token at `position`: every `stride`-th, and the top."""
    logits = logits.numpy()
    top = np.argsort(-logits, kind="stable")[:TOP]
    wide = logits.astype(np.float64)
    return {
        "position": position,
        "norm": number(np.linalg.norm(wide)),
        "mean": number(wide.mean()),
        "top": [[int(i), number(logits[i])] for i in top],
        "logits": [number(x) for x in logits[::stride]],
    }


@torch.inference_mode()
def golden(model, tokens, n_greedy, stride, end=None):
    """Logits at four positions of the prompt and the tokens that follow it at temperature 0.

    There are `n_greedy` of them, or fewer where the token `end` comes earlier; it is then the last.

    `greedy_gap` is the smallest difference between the two largest logits on the way: below the arithmetic error
    of an implementation, its tokens may differ without a defect.
    """
    n = len(tokens)
    out = model(torch.tensor([tokens]), use_cache=True)
    positions = sorted({0, n // 3, 2 * n // 3, n - 1})
    described = [describe(p, out.logits[0, p], stride) for p in positions]
    greedy, gap = [], float("inf")
    logits = out.logits[0, -1]
    for _ in range(n_greedy):
        best = torch.topk(logits, 2)
        gap = min(gap, (best.values[0] - best.values[1]).item())
        greedy.append(best.indices[0].item())
        if greedy[-1] == end:
            break
        out = model(torch.tensor([[greedy[-1]]]), past_key_values=out.past_key_values, use_cache=True)
        logits = out.logits[0, -1]
    return {
        "tokens": tokens,
        "greedy": greedy,
        "greedy_gap": number(gap),
        "stride": stride,
        "positions": described,
    }


def write(path, value):
    """One line per field, no spaces: small, and a change shows as a change of few lines."""
    fields = [f"{json.dumps(k)}:{json.dumps(v, ensure_ascii=False, separators=(',', ':'))}" for k, v in value.items()]
    Path(path).write_text("{" + ",\n".join(fields) + "}\n", encoding="utf-8")
