#!/usr/bin/env python3
"""Make the tiny llama models of tests/data: train for a minute, write GGUF in F32 and Q8_0, write golden answers.

The model knows a few texts by heart, so tests can tell at a glance whether it speaks well: two chat answers that end
with <|im_end|> (one of them made of three- and four-byte characters) and a list of seasons that never ends.
Training depends on the machine in its last digits; the committed files are one such run.
Needs what hf_reference.py needs.
"""

from pathlib import Path

import gguf
import hf_reference as hf
import numpy as np
import torch
from gguf.quants import quantize
from transformers import LlamaConfig, LlamaForCausalLM

OUT = Path(__file__).resolve().parent.parent / "tests" / "data"
N_CTX = 512
N_LAYER, N_EMBD, N_HEAD, N_HEAD_KV, N_FF = 2, 64, 4, 2, 96
HEAD_DIM = N_EMBD // N_HEAD
ROPE_THETA, RMS_EPS = 10000.0, 1e-5
N_GREEDY = 64

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BOS, EOS = 0, 2
MERGES = """Ġ t|h e|i n|e r|a n|o n|r e|Ġ a|Ġt he|Ġ s|e n|Ġ w|o u|i t|in g|Ġ c|o r|a t|Ġ o|e s|Ċ Ċ""".split("|")
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

ANSWERS = {
    "Write a haiku.": "Rain counts on the roof,\nthe old clock listens and learns\na number by heart.",
    "Schreibe es auf Japanisch.": "古池や 蛙飛びこむ 水の音 🐸🌸",
    "Who are you?": "I am a very small model, made to test a library.",
}
SEASONS = "spring, summer, autumn, winter, "


def byte_alphabet():
    """The character that stands for each byte in GPT-2's byte-level BPE."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    table = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [table[b] for b in range(256)]


def vocabulary():
    """The tokens and their GGUF types: control tokens, bytes, results of the merges."""
    tokens = CONTROL + byte_alphabet() + [merge.replace(" ", "") for merge in MERGES]
    types = [gguf.TokenType.CONTROL] * len(CONTROL) + [gguf.TokenType.NORMAL] * (len(tokens) - len(CONTROL))
    return tokens, types


def chat_prompt(question):
    """What TEMPLATE makes of one user message."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def adjacent_pairs(weight, heads):
    """Rows of a Q or K projection from transformers' order (halves) to GGUF's (rotary pairs adjacent)."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path, kind, weights):
    """Writes a GGUF file with matrices of tensor type `kind`; `weights` by transformers' names."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny llama")
    writer.add_context_length(N_CTX)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYER)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEAD)
    writer.add_head_count_kv(N_HEAD_KV)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_layer_norm_rms_eps(RMS_EPS)
    tokens, types = vocabulary()
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name in tensor_names():
        weight = weights[hf.hf_name(name)].numpy().astype(np.float32)
        if "attn_q" in name:
            weight = adjacent_pairs(weight, N_HEAD)
        elif "attn_k" in name:
            weight = adjacent_pairs(weight, N_HEAD_KV)
        weight = np.ascontiguousarray(weight)
        if weight.ndim == 1 or kind == gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, weight)
        else:
            writer.add_tensor(name, quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tensor_names():
    """The GGUF names of all tensors, in file order."""
    yield "token_embd.weight"
    for layer in range(N_LAYER):
        for role in hf.LAYER_NAMES:
            yield f"blk.{layer}.{role}.weight"
    yield "output_norm.weight"
    yield "output.weight"


def train(tokenizer, steps=500):
    """A model that has learnt ANSWERS and SEASONS."""
    torch.manual_seed(1)
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=len(vocabulary()[0]),
        hidden_size=N_EMBD,
        intermediate_size=N_FF,
        num_hidden_layers=N_LAYER,
        num_attention_heads=N_HEAD,
        num_key_value_heads=N_HEAD_KV,
        head_dim=HEAD_DIM,
        max_position_embeddings=N_CTX,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        rms_norm_eps=RMS_EPS,
        tie_word_embeddings=False,
        bos_token_id=BOS,
        eos_token_id=EOS,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    texts = [tokenizer.encode(f"{chat_prompt(q)}{a}<|im_end|>\n").ids for q, a in ANSWERS.items()]
    texts.append((tokenizer.encode(SEASONS).ids * N_CTX)[:160])
    width = max(map(len, texts))
    ids = torch.full((len(texts), width), EOS)
    labels = torch.full((len(texts), width), -100)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = labels[row, : len(text)] = torch.tensor(text)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
    for step in range(steps):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)
    return model.eval()


def main():
    tokens, _ = vocabulary()
    tokenizer = hf.bpe_tokenizer(tokens, MERGES, CONTROL)
    trained = train(tokenizer).state_dict()
    prompts = {"haiku": chat_prompt("Write a haiku."), "unicode": chat_prompt("Schreibe es auf Japanisch.")}
    prompts["seasons"] = SEASONS.strip()
    for kind, name in [(gguf.GGMLQuantizationType.F32, "tiny-llama"), (gguf.GGMLQuantizationType.Q8_0, "tiny-llama-q8_0")]:
        path = OUT / f"{name}.gguf"
        write_gguf(path, kind, trained)
        model = hf.load_model(path)
        if kind == gguf.GGMLQuantizationType.F32:
            assert all(torch.equal(w, trained[n]) for n, w in model.state_dict().items()), "the file changes the weights"
        answers = {}
        for prompt, text in prompts.items():
            golden = hf.golden(model, hf.load_tokenizer(path).encode(text).ids, N_GREEDY, stride=1, end=EOS)
            answer = tokenizer.decode(golden["greedy"])
            print(f"{name} {prompt}: gap {golden['greedy_gap']:.3f}, {answer!r}")
            answers[prompt] = {"text": text, "answer": answer, **golden}
        hf.write(OUT / f"{name}.json", answers)
        print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
