#!/usr/bin/env python3
"""Make sure that there is a compiler for the kernels: install NVIDIA's into build/cuda if there is no other, once.

Looks where build.rs looks (NVCC, CUDA_HOME, PATH, /usr/local/cuda, build/cuda) and does nothing if one of them has an
nvcc that is new enough. The compiler comes from the Python packages of the CUDA toolkit, 105 MB to download and 270 MB on
disk, from the index that pip is configured for. Needs Python 3.9 and pip or venv, nothing else.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import fetch

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "build" / "cuda"
PACKAGES = ["nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime", "nvidia-cuda-cccl"]
VERSION = "13.0.*"


def oldest():
    """The oldest version that will do, as build.rs has it."""
    found = re.search(r"OLDEST_NVCC: \(u32, u32\) = \((\d+), (\d+)\)", (ROOT / "build.rs").read_text())
    return tuple(map(int, found.groups()))


def version(nvcc):
    """The version of this nvcc, or None if it does not run."""
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    except OSError:
        return None
    found = re.search(r"release (\d+)\.(\d+)", text)
    return found and tuple(map(int, found.groups()))


def places():
    if os.environ.get("NVCC"):
        yield Path(os.environ["NVCC"])
    if os.environ.get("CUDA_HOME"):
        yield Path(os.environ["CUDA_HOME"]) / "bin" / "nvcc"
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield Path(folder or ".") / "nvcc"
    yield Path("/usr/local/cuda/bin/nvcc")
    yield TARGET / "bin" / "nvcc"


def install():
    fetch.say(f"no nvcc {'.'.join(map(str, oldest()))} or later on this machine; installing one into {TARGET}, once")
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cuda-", dir=TARGET.parent) as work:
        pip, packages = fetch.pip_command(Path(work)), Path(work) / "packages"
        command = [*pip, "install", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check"]
        command += ["--target", str(packages), *(f"{name}=={VERSION}" for name in PACKAGES)]
        if subprocess.run(command, stdout=sys.stderr).returncode != 0:
            sys.exit(
                "fetch_nvcc: pip could not install the compiler (its own words are above). Check the network and pip's "
                "configuration (pip config list), install the CUDA toolkit, or build for the CPU only: make CUDA=0"
            )
        [toolkit] = (packages / "nvidia").glob("cu*")
        shutil.rmtree(TARGET, ignore_errors=True)
        os.replace(toolkit, TARGET)
    if version(TARGET / "bin" / "nvcc") is None:
        sys.exit(f"fetch_nvcc: {TARGET}/bin/nvcc does not run")
    fetch.say(f"installed {TARGET}")


def main():
    if not any(path.is_file() and (version(path) or (0, 0)) >= oldest() for path in places()):
        install()


if __name__ == "__main__":
    main()
