"""What a GGUF file of an architecture holds: named shapes, the tensors with their dimensions and roles, the metadata.

Names and meanings are those of llama.cpp. Needs: pip install gguf.
"""

import math
from dataclasses import dataclass, field

import gguf

NORM_ON_QK = ("qwen3", "qwen3moe", "gemma3")
BIAS_ON_QKV = ("qwen2", "gpt-oss")
GEMMA = ("gemma2", "gemma3")


@dataclass(frozen=True)
class Shape:
    """The sizes of a model and whatever its architecture leaves open."""

    arch: str
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_ff: int
    n_vocab: int
    # Whether the head is the embedding.
    tied: bool = False
    # Elements of a head that turn; 0 for all.
    n_rot: int = 0
    n_expert: int = 0
    n_expert_used: int = 0
    # Of the layers with a sliding window; 0 for none.
    window: int = 0
    n_ctx: int = 32768
    rope_base: float = 1e6
    # Factors that divide the frequencies: tensor name to `n_rot / 2` numbers.
    rope_factors: dict = field(default_factory=dict)
    # Further metadata, without the architecture's prefix.
    keys: dict = field(default_factory=dict)


def llama3_factors(n_rot, base, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings):
    """What Llama 3.1 divides its frequencies by: `factor` for long waves, 1 for short ones, a ramp between."""
    factors = []
    low, high = low_freq_factor, high_freq_factor
    for i in range(n_rot // 2):
        waves = original_max_position_embeddings * base ** (-2 * i / n_rot) / (2 * math.pi)
        share = min(1.0, max(0.0, (waves - low) / (high - low)))
        factors.append(1 / ((1 - share) / factor + share))
    return factors


# In the words of transformers.
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
# Of the full-size gpt-oss, and of the tiny one.
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 4096}
SCALES = {"embedding_scale": 2.0, "residual_scale": 0.6, "attention.scale": 0.17, "logit_scale": 0.9}
SHORT = {"rope_factors_short.weight": [1.0, 1.05, 1.2, 1.5, 1.9, 2.3]}
LONG = {"rope_factors_long.weight": [1.1, 1.6, 2.7, 5.0, 11.0, 23.0]}
LONGROPE = {"rope.scaling.original_context_length": 256, "rope.scaling.attn_factor": 1.25**0.5}
CAPS = {"attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0}
LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "final_logit_softcapping": 5.0}
LOCAL_BASE = {"rope.freq_base_swa": 10000.0}
# Local layers: the first and the last of three.
PATTERN = {"attention.sliding_window_pattern": [True, False, True]}

V = 112
SHAPES = {
    "tiny-llama": Shape("llama", 2, 32, 4, 2, 16, 48, V, n_ctx=512, rope_base=1e4),
    "tiny-llama3": Shape(
        "llama", 2, 32, 2, 1, 16, 48, V, True, n_ctx=512, rope_base=5e5,
        rope_factors={"rope_freqs.weight": llama3_factors(16, 5e5, **LLAMA3)},
    ),
    "tiny-mixtral": Shape("llama", 2, 32, 2, 1, 16, 24, V, n_expert=4, n_expert_used=2, n_ctx=512),
    "tiny-qwen2": Shape("qwen2", 2, 32, 2, 1, 16, 48, V, True, n_ctx=512),
    "tiny-qwen3": Shape("qwen3", 2, 32, 4, 2, 16, 48, V, True, n_ctx=512),
    "tiny-qwen3moe": Shape("qwen3moe", 2, 32, 4, 2, 16, 16, V, n_expert=6, n_expert_used=3, n_ctx=512),
    "tiny-phi3": Shape("phi3", 2, 32, 2, 1, 16, 48, V, n_ctx=512, rope_base=1e4),
    "tiny-phi3-longrope": Shape(
        "phi3", 2, 32, 2, 2, 16, 48, V, True, n_rot=12, n_ctx=1024, rope_base=1e4,
        rope_factors=LONG | SHORT, keys=LONGROPE,
    ),
    "tiny-phi3-window": Shape("phi3", 2, 32, 2, 1, 16, 48, V, window=16, n_ctx=512, rope_base=1e4),
    "tiny-gemma2": Shape("gemma2", 3, 32, 2, 1, 16, 48, V, True, window=16, n_ctx=512, rope_base=1e4, keys=CAPS),
    "tiny-gemma3": Shape("gemma3", 7, 32, 2, 1, 16, 24, V, True, window=16, n_ctx=512, keys=LOCAL_BASE),
    "tiny-gemma3-linear": Shape("gemma3", 3, 32, 2, 1, 16, 32, V, True, window=16, n_ctx=512, keys=LINEAR | PATTERN),
    "tiny-gpt2": Shape("gpt2", 2, 32, 2, 2, 16, 64, V, True, n_ctx=256),
    "tiny-gpt-oss": Shape(
        "gpt-oss", 3, 32, 2, 1, 16, 32, V, n_expert=4, n_expert_used=2, window=16, rope_base=150000.0, keys=YARN
    ),
    "tiny-smollm3": Shape("smollm3", 5, 32, 2, 1, 16, 24, V, True, n_ctx=512, rope_base=5e4),
    "tiny-olmo2": Shape("olmo2", 2, 32, 2, 1, 16, 48, V, n_ctx=512, rope_base=5e5),
    "tiny-granite": Shape("granite", 2, 32, 2, 1, 16, 48, V, True, n_ctx=512, rope_base=1e4, keys=SCALES),
    "smollm2-135m": Shape("llama", 30, 576, 9, 3, 64, 1536, 49152, True),
    "qwen2-0.5b": Shape("qwen2", 24, 896, 14, 2, 64, 4864, 151936, True),
    "llama-1b": Shape("llama", 16, 2048, 32, 8, 64, 8192, 128256, True),
    "qwen2-3b": Shape("qwen2", 36, 2048, 16, 2, 128, 11008, 151936, True),
    "phi3-mini": Shape("phi3", 32, 3072, 32, 32, 96, 8192, 32064),
    "qwen3-4b": Shape("qwen3", 36, 2560, 32, 8, 128, 9728, 151936, True),
    "gemma2-2b": Shape("gemma2", 26, 2304, 8, 4, 256, 9216, 256000, True, window=4096),
    "gemma3-270m": Shape("gemma3", 18, 640, 4, 1, 256, 2048, 262144, True, window=512),
    "gemma3-1b": Shape("gemma3", 26, 1152, 4, 1, 256, 6912, 262144, True, window=512),
    "llama-8b": Shape("llama", 32, 4096, 32, 8, 128, 14336, 128256),
    "mixtral-8x7b": Shape("llama", 32, 4096, 32, 8, 128, 14336, 32000, n_expert=8, n_expert_used=2),
    "llama-70b": Shape("llama", 80, 8192, 64, 8, 128, 28672, 128256),
    "gpt2-124m": Shape("gpt2", 12, 768, 12, 12, 64, 3072, 50257, True, n_ctx=1024),
    "gpt-oss-20b": Shape(
        "gpt-oss", 24, 2880, 64, 8, 64, 2880, 201088, n_expert=32, n_expert_used=4, window=128,
        n_ctx=131072, rope_base=150000.0, keys=YARN,
    ),
    "qwen3-30b-a3b": Shape("qwen3moe", 48, 2048, 32, 4, 128, 768, 151936, n_expert=128, n_expert_used=8),
    "smollm3-3b": Shape("smollm3", 36, 2048, 16, 4, 128, 11008, 128256, True, rope_base=5e6),
    "olmo2-1b": Shape("olmo2", 16, 2048, 16, 16, 128, 8192, 100352, rope_base=5e5),
    "granite-2b": Shape("granite", 40, 2048, 32, 8, 64, 8192, 49155, True, rope_base=1e7, keys=SCALES),
}


def tensors(s):
    """The tensors of a shape in file order: name, dimensions (columns first), role (see synth_gguf.py)."""
    yield "token_embd.weight", (s.n_embd, s.n_vocab), "embd"
    if s.arch == "gpt2":
        yield "position_embd.weight", (s.n_embd, s.n_ctx), "position"
        yield "output_norm.bias", (s.n_embd,), "bias"
    yield "output_norm.weight", (s.n_embd,), "norm"
    if not s.tied:
        yield "output.weight", (s.n_embd, s.n_vocab), "out"
    for name, factors in s.rope_factors.items():
        yield name, (len(factors),), "factors"
    for layer in range(s.n_layer):
        for name, dims, role in (*attention_tensors(s), *ffn_tensors(s)):
            yield f"blk.{layer}.{name}", dims, role


def attention_tensors(s):
    q, k = s.n_head * s.head_dim, s.n_head_kv * s.head_dim
    if s.arch != "olmo2":
        yield "attn_norm.weight", (s.n_embd,), "norm"
    if s.arch == "gpt2":
        yield "attn_norm.bias", (s.n_embd,), "bias"
    if s.arch in ("gpt2", "phi3"):
        yield "attn_qkv.weight", (s.n_embd, q + 2 * k), "qkv"
        if s.arch == "gpt2":
            yield "attn_qkv.bias", (q + 2 * k,), "bias"
    else:
        yield "attn_q.weight", (s.n_embd, q), "qk"
        yield "attn_k.weight", (s.n_embd, k), "qk"
        yield "attn_v.weight", (s.n_embd, k), "v"
        if s.arch in BIAS_ON_QKV:
            for name, rows in (("attn_q", q), ("attn_k", k), ("attn_v", k)):
                yield f"{name}.bias", (rows,), "bias"
        if s.arch in NORM_ON_QK or s.arch == "olmo2":
            yield "attn_q_norm.weight", (q if s.arch == "olmo2" else s.head_dim,), "norm"
            yield "attn_k_norm.weight", (k if s.arch == "olmo2" else s.head_dim,), "norm"
    yield "attn_output.weight", (q, s.n_embd), "w"
    if s.arch in ("gpt2", "gpt-oss"):
        yield "attn_output.bias", (s.n_embd,), "bias"
    if s.arch == "gpt-oss":
        yield "attn_sinks.weight", (s.n_head,), "sinks"
    if s.arch in (*GEMMA, "gpt-oss", "olmo2"):
        yield "post_attention_norm.weight", (s.n_embd,), "norm"


def ffn_tensors(s):
    n, ff = s.n_embd, s.n_ff
    if s.arch not in ("gpt-oss", "olmo2"):
        yield "ffn_norm.weight", (n,), "norm"
    if s.arch in (*GEMMA, "olmo2"):
        yield "post_ffw_norm.weight", (n,), "norm"
    if s.n_expert:
        gate, down = ("exp_clamped", "exp_small") if s.arch == "gpt-oss" else ("exp", "exp")
        yield "ffn_gate_inp.weight", (n, s.n_expert), "router"
        yield "ffn_gate_exps.weight", (n, ff, s.n_expert), gate
        yield "ffn_up_exps.weight", (n, ff, s.n_expert), gate
        yield "ffn_down_exps.weight", (ff, n, s.n_expert), down
        if s.arch == "gpt-oss":
            yield "ffn_gate_inp.bias", (s.n_expert,), "bias"
            yield "ffn_gate_exps.bias", (ff, s.n_expert), "bias"
            yield "ffn_up_exps.bias", (ff, s.n_expert), "bias"
            yield "ffn_down_exps.bias", (n, s.n_expert), "bias"
    elif s.arch == "gpt2":
        yield "ffn_norm.bias", (n,), "bias"
        yield "ffn_up.weight", (n, ff), "w"
        yield "ffn_up.bias", (ff,), "bias"
        yield "ffn_down.weight", (ff, n), "down"
        yield "ffn_down.bias", (n,), "bias"
    elif s.arch == "phi3":
        yield "ffn_up.weight", (n, 2 * ff), "w"
        yield "ffn_down.weight", (ff, n), "down"
    else:
        yield "ffn_gate.weight", (n, ff), "w"
        yield "ffn_up.weight", (n, ff), "w"
        yield "ffn_down.weight", (ff, n), "down"


def add_metadata(writer, s):
    """Writes the hyperparameters of a shape."""
    writer.add_context_length(s.n_ctx)
    writer.add_embedding_length(s.n_embd)
    writer.add_block_count(s.n_layer)
    writer.add_feed_forward_length(s.n_ff)
    writer.add_head_count(s.n_head)
    writer.add_head_count_kv(s.n_head_kv)
    writer.add_vocab_size(s.n_vocab)
    if s.arch == "gpt2":
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_key_length(s.head_dim)
        writer.add_value_length(s.head_dim)
        writer.add_rope_dimension_count(s.n_rot or s.head_dim)
        writer.add_rope_freq_base(s.rope_base)
        writer.add_layer_norm_rms_eps(1e-6)
    if s.n_expert:
        writer.add_expert_count(s.n_expert)
        writer.add_expert_used_count(s.n_expert_used)
        writer.add_expert_feed_forward_length(s.n_ff)
    if s.window:
        writer.add_sliding_window(s.window)
    kinds = {str: gguf.GGUFValueType.STRING, int: gguf.GGUFValueType.UINT32, float: gguf.GGUFValueType.FLOAT32}
    for key, value in s.keys.items():
        key = f"{s.arch}.{key}"
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, kinds[type(value)])
