#!/usr/bin/env python3
"""Write tests/data/quant/*.bin: random blocks of every quantisation type and the weights that gguf-py makes of them.

One file per type, little-endian:

    u32     ggml number, weights in a block, bytes of a block, number of blocks (from gguf-py's table)
    u8      the blocks
    f32     their weights

The first blocks have odd scales: both zeros, subnormals, the extremes, infinities, NaN. Needs: pip install numpy gguf.

  make_quant_goldens.py                 rewrite the files
  make_quant_goldens.py --check         compare, write nothing
"""
import argparse
import sys
from pathlib import Path

import numpy as np
import gguf
from gguf import GGMLQuantizationType as T
from gguf.quants import dequantize

FOLDER = Path(__file__).resolve().parent.parent / "tests/data/quant"

# Where the halves of a block are that scale it.
HALVES = {
    T.F16: [0], T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82],
    T.Q3_K: [108], T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208], T.IQ4_NL: [0], T.IQ4_XS: [0],
}
TYPES = sorted([*HALVES, T.F32, T.BF16, T.MXFP4])

# Zeros, the smallest and largest subnormals, one and the neighbours of a power of two, extremes, infinities, NaN.
ODD_HALVES = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x3C00, 0xBBFF, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E00]
ODD_EXPONENTS = [0, 1, 2, 126, 127, 128, 254, 255]


def random_blocks(rng, type, n):
    """n blocks of random bytes, all scales finite and of the size that real models have, then some made odd."""
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[type]
    blocks = rng.integers(0, 256, (n, block_bytes), dtype=np.uint8)
    halves = HALVES.get(type, [])
    for at in halves:
        scales = (rng.standard_normal(n) * 0.01).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(n, 2)
    if type == T.MXFP4:
        blocks[:, 0] = rng.integers(110, 130, n)
        odd = ODD_EXPONENTS[: n - 4]
        blocks[: len(odd), 0] = odd
    if halves:
        odd = rng.permutation(ODD_HALVES)[: n - 4] if n < len(ODD_HALVES) + 4 else ODD_HALVES
        for row, value in enumerate(odd):
            at = halves[row % len(halves)]
            blocks[row, at : at + 2] = np.array([value], dtype="<u2").view(np.uint8)
    return blocks


def golden(type):
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[type]
    n = {1: 256, 32: 20, 256: 10}[block_len]
    rng = np.random.default_rng(int(type))
    blocks = random_blocks(rng, type, n)
    with np.errstate(all="ignore"):
        weights = np.ascontiguousarray(dequantize(blocks, type), dtype="<f4")
    assert weights.size == n * block_len
    header = np.array([type, block_len, block_bytes, n], dtype="<u4")
    return header.tobytes() + blocks.tobytes() + weights.tobytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    FOLDER.mkdir(parents=True, exist_ok=True)
    for type in TYPES:
        path = FOLDER / f"{type.name.lower()}.bin"
        data = golden(type)
        if not check:
            path.write_bytes(data)
        elif path.read_bytes() != data:
            sys.exit(f"{path} is not what gguf-py gives")


if __name__ == "__main__":
    main()
