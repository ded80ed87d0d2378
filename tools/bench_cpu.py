#!/usr/bin/env python3
"""Compare kigo with llama.cpp on the CPU: same machine, same file, same tokens, same threads, in alternating rounds.

Each engine lives in a process of its own, which loads the model once and warms up. A round computes a prompt of 128
tokens (prefill, until the first token is chosen) and 128 further tokens one by one (decode, greedy). kigo is
called through its C interface, llama.cpp through that of its Python package, llama-cpp-python 0.3.36, which is
built from source into build/bench-venv the first time; --llama-python names another Python that has it.

Prints a table and writes build/bench.json.
"""

import argparse
import ctypes
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import fetch

ROOT = Path(__file__).resolve().parent.parent
LLAMA_CPP = "==".join(fetch.LLAMA_CPP)
N_PROMPT = 128
N_DECODE = 128
N_CTX = 512
FLASH_ATTN = {"off": 0, "on": 1, "auto": -1}


class Kigo:
    """kigo through its C interface."""

    def __init__(self, args):
        self.lib = ctypes.CDLL(args.library)
        for name in ("kigo_version", "kigo_error_message"):
            getattr(self.lib, name).restype = ctypes.c_char_p
        self.version = self.lib.kigo_version().decode()
        self.options = ctypes.c_void_p()
        self.call("kigo_options_new", ctypes.byref(self.options))
        self.call("kigo_options_set_str", self.options, b"device", b"cpu")
        self.call("kigo_options_set_f64", self.options, b"temperature", ctypes.c_double(0))
        numbers = {b"n_threads": args.threads, b"n_ctx": N_CTX, b"n_batch": N_PROMPT, b"max_tokens": N_DECODE + 1,
                   b"prompt_cache_mib": 0}
        for key, value in numbers.items():
            self.call("kigo_options_set_i64", self.options, key, ctypes.c_int64(value))
        self.model = ctypes.c_void_p()
        self.call("kigo_model_load", os.fsencode(args.model), self.options, ctypes.byref(self.model))

    def call(self, name, *args):
        """Calls a function whose last argument is an error; a failure ends the process with its message."""
        error = ctypes.c_void_p()
        if getattr(self.lib, name)(*args, ctypes.byref(error)) < 0:
            sys.exit(f"{name}: {self.lib.kigo_error_message(error).decode()}")

    def start(self, tokens):
        self.inference = ctypes.c_void_p()
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        count = ctypes.c_size_t(len(tokens))
        self.call("kigo_inference_start_tokens", self.model, array, count, self.options, ctypes.byref(self.inference))
        self.token, self.bytes = ctypes.c_int32(), ctypes.create_string_buffer(1024)
        return self.next()

    def next(self):
        status = self.lib.kigo_next_token(self.inference, ctypes.byref(self.token), self.bytes, ctypes.c_size_t(1024))
        if status < 0:
            sys.exit(f"kigo_next_token: status {status} after token {self.token.value}")
        return self.token.value

    def finish(self):
        self.lib.kigo_inference_free(self.inference)


class LlamaCpp:
    """llama.cpp through the C functions of its Python package."""

    def __init__(self, args):
        import llama_cpp

        self.lib, self.version = llama_cpp, f"{llama_cpp.__version__} of llama-cpp-python"
        silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(silent, ctypes.c_void_p())
        self.keep = silent
        llama_cpp.llama_backend_init()
        self.system = llama_cpp.llama_print_system_info().decode()
        self.model = llama_cpp.llama_model_load_from_file(os.fsencode(args.model), llama_cpp.llama_model_default_params())
        if not self.model:
            sys.exit(f"llama.cpp cannot load {args.model}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = N_CTX, N_PROMPT, N_PROMPT
        params.n_threads = params.n_threads_batch = args.threads
        params.flash_attn_type = FLASH_ATTN[args.flash_attn]
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        self.sampler = llama_cpp.llama_sampler_init_greedy()

    def start(self, tokens):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)
        return self.decode(tokens)

    def decode(self, tokens):
        array = (self.lib.llama_token * len(tokens))(*tokens)
        status = self.lib.llama_decode(self.context, self.lib.llama_batch_get_one(array, len(tokens)))
        if status != 0:
            sys.exit(f"llama_decode: {status}")
        self.token = self.lib.llama_sampler_sample(self.sampler, self.context, -1)
        return self.token

    def next(self):
        return self.decode([self.token])

    def finish(self):
        pass


def peak_bytes():
    """The largest resident size that this process has had (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def work(args):
    """One engine: answers every line of standard input with the measurements of one round."""
    tokens = json.loads(sys.stdin.readline())
    before = peak_bytes()
    started = time.perf_counter()
    engine = {"kigo": Kigo, "llama.cpp": LlamaCpp}[args.worker](args)
    load = time.perf_counter() - started
    system = getattr(engine, "system", "")
    print(json.dumps({"version": engine.version, "system": system, "load_s": load}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        out = [engine.start(tokens)]
        prefilled = time.perf_counter()
        out += [engine.next() for _ in range(N_DECODE)]
        ended = time.perf_counter()
        engine.finish()
        answer = {"prefill": len(tokens) / (prefilled - started), "decode": N_DECODE / (ended - prefilled)}
        answer |= {"tokens": out, "peak_bytes": peak_bytes(), "before_bytes": before}
        print(json.dumps(answer), flush=True)


class Worker:
    """The process of an engine."""

    def __init__(self, name, python, args, tokens):
        command = [python, __file__, "--worker", name, "--library", args.library, "--model", args.model]
        command += ["--threads", str(args.threads), "--flash-attn", args.flash_attn]
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.facts = self.ask(json.dumps(tokens))
        self.rounds = []

    def ask(self, line):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"bench: the process of {self.name} ended with status {self.process.wait()}")
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def llama_python(args):
    """A Python that has llama-cpp-python; built into build/bench-venv the first time."""
    if args.llama_python:
        return args.llama_python
    venv = ROOT / "build" / "bench-venv"
    python = venv / "bin" / "python"
    ready = venv / LLAMA_CPP
    if not ready.exists():
        print(f"building {LLAMA_CPP} from source into {venv}: some minutes, once", file=sys.stderr, flush=True)
        jobs = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
        install = [python, "-m", "pip", "install", "--no-binary", fetch.LLAMA_CPP[0], LLAMA_CPP]
        for command in ([sys.executable, "-m", "venv", venv], install):
            if subprocess.run(command, env=os.environ | jobs, stdout=sys.stderr).returncode != 0:
                sys.exit("bench: that did not work; the reason is above (it needs a C++ compiler and a network)")
        ready.touch()
    return str(python)


def cpu_name():
    """What the system calls the processor, with its wide vector extensions."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    wide = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8") if flag in flags]
    family = f"family {fields.get('cpu family', '?')} model {fields.get('model', '?')}"
    return f"{fields.get('model name', platform.machine())}, {family} ({' '.join(wide)})"


def commit():
    """The commit of this tree, marked if files differ from it."""
    answer = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return answer.stdout.strip() or "unknown"


def cell(values):
    """Median, and the range of all rounds."""
    return f"{statistics.median(values):9.1f} ({min(values):.1f} to {max(values):.1f})"


def report(args, workers):
    """Prints the table and writes build/bench.json."""
    file_bytes = Path(args.model).stat().st_size
    facts = {
        "cpu": cpu_name(),
        "threads": args.threads,
        "commit": commit(),
        "model": Path(args.model).name,
        "file_bytes": file_bytes,
        "n_prompt": N_PROMPT,
        "n_decode": N_DECODE,
        "flash_attn": args.flash_attn,
        "load_average": list(os.getloadavg()),
    }
    print(f"{facts['cpu']}; {args.threads} threads; load average {os.getloadavg()[0]:.1f}; commit {facts['commit']}")
    print(f"{facts['model']}, {file_bytes / 1e6:.1f} MB; {len(workers[0].rounds)} rounds; median (least to most)\n")
    print(f"{'':12}{f'prefill of {N_PROMPT}, tok/s':30}{f'decode of {N_DECODE}, tok/s':30}{'load, s':>8}{'peak, MB':>10}{'/ file':>8}")
    engines = {}
    for worker in workers:
        prefill, decode = ([r[key] for r in worker.rounds] for key in ("prefill", "decode"))
        last = worker.rounds[-1]
        share = last["peak_bytes"] / file_bytes
        print(
            f"{worker.name:12}{cell(prefill):30}{cell(decode):30}{worker.facts['load_s']:8.2f}"
            f"{last['peak_bytes'] / 1e6:10.1f}{share:8.2f}"
        )
        engines[worker.name] = worker.facts | {
            "prefill": prefill,
            "decode": decode,
            "peak_bytes": last["peak_bytes"],
            "before_bytes": last["before_bytes"],
        }
    print(f"\npeak is VmHWM of the process, {workers[0].rounds[-1]['before_bytes'] / 1e6:.1f} MB of it Python's own")
    if len(workers) == 2:
        mine, theirs = (w.rounds[-1]["tokens"] for w in workers)
        same = next((i for i, (a, b) in enumerate(zip(mine, theirs)) if a != b), len(mine))
        facts["same_tokens"] = same
        for key in ("prefill", "decode"):
            ratio = statistics.median(engines["kigo"][key]) / statistics.median(engines["llama.cpp"][key])
            facts[f"{key}_ratio"] = ratio
            print(f"{key}: kigo is at {ratio:.2f} of llama.cpp")
        print(f"the first {same} of {len(mine)} tokens are the same (the engines round differently)")
    out = ROOT / "build" / "bench.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(facts | {"engines": engines}, indent=1) + "\n")
    print(f"written to {out.relative_to(ROOT)}")


def main():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", default=str(ROOT / "build" / "lib" / "libkigo.so.0"))
    parser.add_argument("--model", help="GGUF file with the vocabulary of SmolLM2 (default: the one of fetch.py)")
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flash-attn", choices=FLASH_ATTN, default="off", help="of llama.cpp (default: off)")
    parser.add_argument("--engines", nargs="+", choices=["kigo", "llama.cpp"], default=["kigo", "llama.cpp"])
    parser.add_argument("--llama-python", help="a Python that has llama-cpp-python")
    parser.add_argument("--worker", choices=["kigo", "llama.cpp"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.model = args.model or str(fetch.fetch("smollm2")[0])
    if args.worker:
        return work(args)
    golden = json.loads((ROOT / "tests" / "data" / "logits" / "prose-long.json").read_text(encoding="utf-8"))
    tokens = golden["tokens"][:N_PROMPT]
    python = llama_python(args) if "llama.cpp" in args.engines else sys.executable
    if os.getloadavg()[0] > 0.5:
        print(f"bench: the machine is busy (load {os.getloadavg()[0]:.1f}); the figures will be too low", file=sys.stderr)
    workers = [Worker(name, python, args, tokens) for name in args.engines]
    for number in range(args.rounds + 1):
        for worker in workers:
            answer = worker.ask("round")
            if number > 0:
                worker.rounds.append(answer)
    for worker in workers:
        worker.close()
    report(args, workers)
    return None


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
