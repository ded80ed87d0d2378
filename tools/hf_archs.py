"""Models of transformers in f32 with the weights of a GGUF file, for every architecture of gguf_shapes.py.

Configuration and weights come from the file alone. Needs what hf_reference.py needs.
"""

import gguf
import numpy as np
import torch
import transformers
from gguf.quants import dequantize
from gguf_shapes import LLAMA3
from hf_reference import half_split

CLASSES = {
    "llama": ("LlamaConfig", "LlamaForCausalLM"),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM"),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM"),
    "qwen3moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "phi3": ("Phi3Config", "Phi3ForCausalLM"),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM"),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"),
    "gpt2": ("GPT2Config", "GPT2LMHeadModel"),
    "gpt-oss": ("GptOssConfig", "GptOssForCausalLM"),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM"),
    "olmo2": ("Olmo2Config", "Olmo2ForCausalLM"),
    "granite": ("GraniteConfig", "GraniteForCausalLM"),
}
# Architectures whose converter puts the two elements of a rotary pair side by side.
ADJACENT = ("llama", "mixtral", "smollm3", "granite")
# Of every which layer, counted from the last, the attention sees all positions; the others have the window.
GLOBAL_EVERY = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2}

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "attn_sinks": "self_attn.sinks",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_down_exps": "mlp.experts.down_proj",
}
SPECIAL = {
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
    "gemma2": {"ffn_norm": "pre_feedforward_layernorm"},
    "gemma3": {"ffn_norm": "pre_feedforward_layernorm"},
    "gpt-oss": {"ffn_gate_inp": "mlp.router"},
}
GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "attn_norm": "ln_1",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


class File:
    """The hyperparameters and the weights of a GGUF file."""

    def __init__(self, path):
        reader = gguf.GGUFReader(path)
        self.fields = reader.fields
        self.arch = self.fields["general.architecture"].contents()
        self.tensors = {t.name: dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors}
        self.model = "mixtral" if self.arch == "llama" and self.get("expert_count") else self.arch

    def get(self, key, default=None):
        field = self.fields.get(f"{self.arch}.{key}")
        return default if field is None else field.contents()

    def head_dim(self):
        return self.get("attention.key_length", self.get("embedding_length") // self.get("attention.head_count"))


def rope_parameters(file):
    """How positions turn, in the words of transformers."""
    rope = {"rope_theta": file.get("rope.freq_base", 10000.0), "rope_type": "default"}
    factor, original = file.get("rope.scaling.factor"), file.get("rope.scaling.original_context_length")
    share = file.get("rope.dimension_count", file.head_dim()) / file.head_dim()
    if share < 1:
        rope["partial_rotary_factor"] = share
    if "rope_freqs.weight" in file.tensors:
        rope |= {"rope_type": "llama3", **LLAMA3}
    elif "rope_factors_long.weight" in file.tensors:
        factors = {f"{kind}_factor": file.tensors[f"rope_factors_{kind}.weight"].tolist() for kind in ("long", "short")}
        attention = file.get("rope.scaling.attn_factor")
        rope |= {"rope_type": "longrope", "original_max_position_embeddings": original, "attention_factor": attention}
        rope |= factors
    elif file.get("rope.scaling.type") == "yarn":
        rope |= {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, "truncate": True}
    elif file.get("rope.scaling.type") == "linear":
        rope |= {"rope_type": "linear", "factor": factor}
    if file.arch == "gemma3":
        local = {"rope_type": "default", "rope_theta": file.get("rope.freq_base_swa", 10000.0)}
        return {"full_attention": rope, "sliding_attention": local}
    return rope


def layer_types(file):
    pattern = file.get("attention.sliding_window_pattern")
    every, n_layer = GLOBAL_EVERY[file.arch], file.get("block_count")
    local = pattern or [(i + 1) % every != 0 for i in range(n_layer)]
    return ["sliding_attention" if is_local else "full_attention" for is_local in local]


def config(file):
    name = CLASSES[file.model][0]
    n_embd, n_head, n_ctx = file.get("embedding_length"), file.get("attention.head_count"), file.get("context_length")
    common = {
        "vocab_size": len(file.tensors["token_embd.weight"]),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attn_implementation": "eager",
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if file.arch == "gpt2":
        sizes = {"n_embd": n_embd, "n_layer": file.get("block_count"), "n_head": n_head, "n_positions": n_ctx}
        sizes |= {"n_inner": file.get("feed_forward_length"), "activation_function": "gelu_new"}
        return transformers.GPT2Config(**common, **sizes, layer_norm_epsilon=file.get("attention.layer_norm_epsilon"))
    more = {"head_dim": file.head_dim()}
    window = file.get("attention.sliding_window")
    if file.arch == "phi3":
        more |= {"sliding_window": window or None}
        more |= {"original_max_position_embeddings": file.get("rope.scaling.original_context_length", n_ctx)}
    if file.arch in GLOBAL_EVERY:
        more |= {"sliding_window": window, "layer_types": layer_types(file)}
    if file.arch in ("gemma2", "gemma3"):
        caps = {key: file.get(key) for key in ("attn_logit_softcapping", "final_logit_softcapping")}
        more |= {"query_pre_attn_scalar": more["head_dim"], "hidden_activation": "gelu_pytorch_tanh", **caps}
    if file.arch == "gpt-oss":
        more |= {"num_local_experts": file.get("expert_count"), "num_experts_per_tok": file.get("expert_used_count")}
    if file.model == "mixtral":
        more |= {"num_local_experts": file.get("expert_count"), "num_experts_per_tok": file.get("expert_used_count")}
    if file.arch == "qwen3moe":
        more |= {"num_experts": file.get("expert_count"), "num_experts_per_tok": file.get("expert_used_count")}
        more |= {"moe_intermediate_size": file.get("expert_feed_forward_length"), "norm_topk_prob": True}
    if file.arch == "smollm3":
        more |= {"no_rope_layer_interval": 4, "use_sliding_window": False}
    if file.arch == "granite":
        more |= {"embedding_multiplier": file.get("embedding_scale"), "residual_multiplier": file.get("residual_scale")}
        more |= {"attention_multiplier": file.get("attention.scale"), "logits_scaling": file.get("logit_scale")}
    return getattr(transformers, name)(
        **common,
        **more,
        hidden_size=n_embd,
        intermediate_size=file.get("feed_forward_length"),
        num_hidden_layers=file.get("block_count"),
        num_attention_heads=n_head,
        num_key_value_heads=file.get("attention.head_count_kv"),
        max_position_embeddings=n_ctx,
        rms_norm_eps=file.get("attention.layer_norm_rms_epsilon"),
        rope_parameters=rope_parameters(file),
    )


def weights(file):
    """The weights of the file under the names and in the layouts of transformers."""
    out = {}
    heads = {"attn_q": file.get("attention.head_count"), "attn_k": file.get("attention.head_count_kv")}
    names = GPT2 if file.arch == "gpt2" else TOP | LAYER | SPECIAL.get(file.arch, {})
    layers = "transformer.h" if file.arch == "gpt2" else "model.layers"
    for name, value in file.tensors.items():
        *layer, role, kind = name.split(".")
        if role.startswith("rope_f") or role in ("ffn_gate_exps", "ffn_up_exps"):
            continue
        if role in heads and file.model in ADJACENT:
            value = half_split(value.reshape(len(value), -1), heads[role]).reshape(value.shape)
        if file.arch.startswith("gemma") and role.endswith("norm"):
            value = value - 1
        if file.arch == "gpt2" and layer and value.ndim == 2:
            value = value.T
        if role == "ffn_down_exps" and file.arch == "gpt-oss" and value.ndim == 3:
            value = value.swapaxes(1, 2)
        target = f"{layers}.{layer[1]}.{names[role]}" if layer else names[role]
        if role == "ffn_down_exps":
            out[target if kind == "weight" else f"{target}_bias"] = value
        else:
            out[target if role == "attn_sinks" else f"{target}.{kind}"] = value
    for layer in range(file.get("block_count")):
        for kind in ("weight", "bias"):
            parts = [file.tensors.get(f"blk.{layer}.ffn_{part}_exps.{kind}") for part in ("gate", "up")]
            if parts[0] is not None:
                target = f"model.layers.{layer}.mlp.experts.gate_up_proj" + ("_bias" if kind == "bias" else "")
                out[target] = interleaved(*parts) if file.arch == "gpt-oss" else np.concatenate(parts, axis=1)
    head = "transformer.wte.weight" if file.arch == "gpt2" else "model.embed_tokens.weight"
    out.setdefault("lm_head.weight", out[head])
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in out.items()}


def interleaved(gate, up):
    """The rows of gate and up in turn, and as columns: the layout of gpt-oss."""
    both = np.stack((gate, up), axis=2).reshape(len(gate), 2 * gate.shape[1], *gate.shape[2:])
    return both.swapaxes(1, 2) if both.ndim == 3 else both


def load_model(path):
    """The model of a file, every weight of which is from the file."""
    file = File(path)
    model = getattr(transformers, CLASSES[file.model][1])(config(file)).eval().float()
    model.load_state_dict(weights(file), strict=True)
    if "rope_freqs.weight" in file.tensors:
        base, n_rot = file.get("rope.freq_base"), file.get("rope.dimension_count")
        plain = base ** (-np.arange(0, n_rot, 2) / n_rot)
        found = model.model.rotary_emb.inv_freq.numpy()
        assert np.allclose(found, plain / file.tensors["rope_freqs.weight"], rtol=1e-5), "rope_freqs.weight"
    return model


@torch.inference_mode()
def logits(model, tokens):
    """f32 `[n, n_vocab]`."""
    return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()


@torch.inference_mode()
def routing_gap(model, tokens):
    """How far the last chosen expert is before the first that is not, at the closest decision on the way, in
    standard deviations of the router's logits. None for a model without experts."""
    gaps = []

    def see(module, _, output):
        found, top = output[0], module.top_k
        order = found.sort(dim=-1, descending=True).values
        gaps.append(((order[:, top - 1] - order[:, top]) / found.std()).min().item())

    routers = [m for m in model.modules() if type(m).__name__.endswith("TopKRouter")]
    hooks = [router.register_forward_hook(see) for router in routers]
    model(torch.tensor([tokens]), use_cache=False)
    for hook in hooks:
        hook.remove()
    return min(gaps, default=None)
