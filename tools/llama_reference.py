"""llama.cpp on the CPU as a judge: logits with a cache of f32, one thread, no flash attention, no repacked weights.

llama.cpp's CPU backend reads GELU from a table of halves, which is off by up to a thousandth. The judge is a build of
the source in llama-cpp-python 0.3.36 with that table switched off; it is made in build/llama-reference the first time
(some minutes). Needs: a C++ compiler, and pip install cmake ninja numpy diskcache jinja2 typing_extensions.
"""

import ctypes
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import fetch
import numpy as np

FOLDER = Path(__file__).resolve().parent.parent / "build" / "llama-reference"
VERSION = f"llama.cpp of llama-cpp-python {fetch.LLAMA_CPP[1]}"
# What the build leaves out: a definition in ggml/src/ggml-cpu/vec.h.
TABLE = "#define GGML_GELU_FP16\n"


def build():
    """Makes the library, unless it is there; returns the folder of the source and that of the library."""
    source, libraries = FOLDER / "source", FOLDER / "build" / "bin"
    if (libraries / "libllama.so").exists():
        return source, libraries
    print(f"building {VERSION} into {FOLDER}: some minutes, once", file=sys.stderr, flush=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    name, version = fetch.LLAMA_CPP
    with tempfile.TemporaryDirectory(dir=FOLDER) as work:
        item = fetch.Item("its source", 0, "not recorded", [])
        archive = fetch.download(fetch.pip_command(Path(work)), Path(work), name, version, True, item)
        with tarfile.open(archive) as tar:
            tar.extractall(work, filter="data")
        os.replace(Path(work) / f"llama_cpp_python-{version}", source)
    header = source / "vendor" / "llama.cpp" / "ggml" / "src" / "ggml-cpu" / "vec.h"
    text = header.read_text()
    assert text.count(TABLE) == 1, "the table of GELU is switched elsewhere"
    header.write_text(text.replace(TABLE, ""))
    parts = ("COMMON", "TESTS", "TOOLS", "EXAMPLES", "SERVER")
    options = ["-GNinja", "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DGGML_NATIVE=ON"]
    options += [f"-DLLAMA_BUILD_{part}=OFF" for part in parts]
    folder = FOLDER / "build"
    for command in (
        ["cmake", "-S", source / "vendor" / "llama.cpp", "-B", folder, *options],
        ["cmake", "--build", folder, "--target", "llama"],
    ):
        subprocess.run(command, stdout=sys.stderr, check=True)
    return source, libraries


def load_library():
    """The functions of llama.cpp, with its log switched off."""
    source, libraries = build()
    os.environ["LLAMA_CPP_LIB_PATH"] = str(libraries)
    sys.path.append(str(source))
    import llama_cpp

    # The callback must outlive the library.
    llama_cpp.silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(llama_cpp.silent, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    return llama_cpp


class LlamaCpp:
    """A file and one context of `n_ctx` positions, which takes up to `n_batch` tokens at a time."""

    def __init__(self, library, path, n_ctx, n_batch=None, n_threads=1):
        self.lib = library
        params = library.llama_model_default_params()
        params.n_gpu_layers, params.use_extra_bufts = 0, False
        self.model = library.llama_model_load_from_file(os.fsencode(path), params)
        if not self.model:
            sys.exit(f"llama.cpp cannot load {path}")
        self.vocab = library.llama_model_get_vocab(self.model)
        self.n_vocab = library.llama_vocab_n_tokens(self.vocab)
        params = library.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = n_ctx, n_batch or n_ctx, n_batch or n_ctx
        params.n_threads = params.n_threads_batch = n_threads
        # 0 is GGML_TYPE_F32, and flash attention off.
        params.type_k = params.type_v = params.flash_attn_type = 0
        self.context = library.llama_init_from_model(self.model, params)
        if not self.context:
            sys.exit(f"llama.cpp cannot run {path} with a context of {n_ctx}")

    def close(self):
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)

    def tokenize(self, text, add_special=False):
        """The ids of a text; control tokens in it are text."""
        text = text.encode()
        ids = (self.lib.llama_token * (len(text) + 2))()
        n = self.lib.llama_tokenize(self.vocab, text, len(text), ids, len(ids), add_special, False)
        assert n >= 0
        return list(ids[:n])

    def text(self, tokens):
        """What tokens stand for."""
        piece, out = ctypes.create_string_buffer(256), b""
        for token in tokens:
            n = self.lib.llama_token_to_piece(self.vocab, token, piece, len(piece), 0, False)
            out += piece.raw[:n]
        return out.decode(errors="replace")

    def logits(self, tokens, keep=None):
        """The logits that follow `tokens`, computed as one batch from position 0: f32 `[n, n_vocab]`.

        The cache then holds the tokens. `keep` are the positions whose logits are wanted; None for all.
        """
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        return self.extend(tokens, 0, range(len(tokens)) if keep is None else keep)

    def extend(self, tokens, start, keep):
        """Like `logits`, for tokens that follow `start` others in the cache; `keep` counts from the first of them."""
        batch = self.lib.llama_batch_init(len(tokens), 0, 1)
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, start + i, 1, 0
            batch.logits[i] = i in keep
        status = self.lib.llama_decode(self.context, batch)
        self.lib.llama_batch_free(batch)
        if status != 0:
            sys.exit(f"llama_decode: {status}")
        rows = [np.ctypeslib.as_array(self.lib.llama_get_logits_ith(self.context, i), (self.n_vocab,)) for i in keep]
        return np.array(rows)
