#!/usr/bin/env python3
"""Measure what rounding activations and weights costs, to choose the operands of products by.

Exact is transformers in f32 on the dequantised weights of SmolLM2-135M-Instruct (Q4_1), over the positions of
measure_divergence.py. Each line rounds what goes into every product: activations to halves, or to integers with a scale for
each 32 of them; weights to halves after dequantising, as they are or with the scale of each 32 rounded to a half before.
Prints the mean and the worst Kullback-Leibler divergence in nats. Needs what hf_reference.py needs;
`tools/fetch.py smollm2` gets the model.
"""

import fetch
import hf_reference as hf
import torch
from measure_divergence import N_POSITIONS, tokens

# Values that share a scale.
GROUP = 32
# Half of the distance between the halves next to 1.
HALF_STEP = 2.0**-11
# Tokens whose logits are in memory at a time.
CHUNK = 250


def halves(x):
    return x.half().float()


def integers(n_bits):
    """Rounds each group to integers of so many bits times its scale."""

    def rounded(x):
        groups = x.unflatten(-1, (-1, GROUP))
        scale = groups.abs().amax(-1, keepdim=True) / (2 ** (n_bits - 1) - 1)
        scale = torch.where(scale == 0, 1, scale)
        return (torch.round(groups / scale) * scale).flatten(-2)

    return rounded


def halves_of_rounded_scales(w):
    """A scale that is rounded moves all weights of its group by as much; here by anything up to what it may."""
    groups = w.unflatten(-1, (-1, GROUP))
    moved = 1 + (2 * torch.rand(groups.shape[0], groups.shape[1], 1) - 1) * HALF_STEP
    return halves((groups * moved).flatten(-2))


CASES = [
    ("activations: halves", halves, None),
    *((f"activations: {n} bits", integers(n), None) for n in (8, 10, 12, 14, 16)),
    ("activations and weights: halves", halves, halves),
    ("activations: halves, weights: halves with rounded scales", halves, halves_of_rounded_scales),
    ("weights: bfloat16", None, lambda w: w.bfloat16().float()),
]


@torch.inference_mode()
def main():
    torch.manual_seed(1)
    model, prompt = hf.load_model(fetch.fetch("smollm2")[0]), torch.tensor([tokens()])
    products = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    weights = [module.weight.detach().clone() for module in products]
    rounding = None
    for module in products:
        module.register_forward_pre_hook(lambda _, inputs: (rounding(inputs[0]) if rounding else inputs[0],))

    def logits(of_activations, of_weights):
        nonlocal rounding
        rounding = of_activations
        for module, weight in zip(products, weights):
            module.weight.data = of_weights(weight) if of_weights else weight
        hidden = model.model(prompt, use_cache=False).last_hidden_state[0]
        return (model.lm_head(part).double().log_softmax(-1) for part in hidden.split(CHUNK))

    exact = [part.float() for part in logits(None, None)]
    for name, of_activations, of_weights in CASES:
        parts = zip(exact, logits(of_activations, of_weights))
        divergence = torch.cat([(p.double().exp() * (p.double() - q)).sum(-1) for p, q in parts])
        print(f"{name}: mean {divergence.mean():.1e} nats, worst {divergence.max():.1e}", flush=True)
    print(f"{N_POSITIONS} positions")


if __name__ == "__main__":
    main()
