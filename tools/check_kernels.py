#!/usr/bin/env python3
"""Check that kernels keep everything in registers: read what ptxas reported in the build, fail on local memory.

  check_kernels.py [cargo arguments, such as --release]

A kernel with a stack frame or spilled registers, or whose asynchronous products wait for each other, is slow without
being wrong, and nothing else would tell. Exceptions of the first kind stand in kernels/spills.txt; one that no kernel
needs any more is an error too.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = ROOT / "kernels" / "spills.txt"
ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(sm_\w+)'")
FUNCTION = re.compile(r"Function properties for (\S+)")
WAITING = re.compile(r"\(C75\d\d\).*")
PROPERTIES = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


def build_folder(arguments):
    """OUT_DIR of kigo's build script, after building what is not up to date."""
    command = [os.environ.get("CARGO", "cargo"), "check", "--lib", "--message-format=json", *arguments]
    output = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if output.returncode != 0:
        sys.exit("check_kernels: the build failed; the reason is above")
    messages = map(json.loads, output.stdout.splitlines())
    folders = [
        message["out_dir"]
        for message in messages
        if message["reason"] == "build-script-executed" and re.search(r"[/#]kigo[#@]|\bkigo \d", message["package_id"])
    ]
    return Path(folders[-1])


def report(text):
    """Functions of a report of ptxas: name, architecture, bytes of local memory."""
    architecture = function = None
    for line in text.splitlines():
        if found := ENTRY.search(line):
            architecture = found[2]
        elif found := FUNCTION.search(line):
            function = found[1]
        elif found := PROPERTIES.search(line):
            stack, stores, loads = map(int, found.groups())
            yield function, architecture, max(stack, stores, loads)


def allowances():
    """What kernels/spills.txt allows: bytes by kernel and architecture."""
    lines = [line.split() for line in ALLOWED.read_text().splitlines() if line and not line.startswith("#")]
    return {(kernel, architecture): int(size) for kernel, architecture, size in lines}


def main():
    reports = sorted((build_folder(sys.argv[1:]) / "kernels").glob("*.ptxas"))
    allowed, needed, architectures, bad, n_kernels = allowances(), set(), set(), [], 0
    for path in reports:
        text = path.read_text()
        bad += [f"{path.stem}: {found}" for found in WAITING.findall(text)]
        for kernel, architecture, size in report(text):
            n_kernels += 1
            architectures.add(architecture)
            if size > allowed.get((kernel, architecture), 0):
                bad.append(f"{path.stem}: {kernel} uses {size} bytes of local memory on {architecture}, expected "
                           f"at most {allowed.get((kernel, architecture), 0)}; use fewer registers, or index arrays "
                           f"with constants, or allow it in {ALLOWED.relative_to(ROOT)}")
            elif size > 0:
                needed.add((kernel, architecture))
    for kernel, architecture in sorted(set(allowed) - needed):
        if architecture in architectures and not any(f": {kernel} uses" in line for line in bad):
            bad.append(f"{ALLOWED.relative_to(ROOT)}: {kernel} needs no local memory on {architecture}; remove its line")
    if n_kernels == 0 and any((ROOT / "kernels").glob("*.cu")):
        bad.append("no reports of ptxas in the build; remove target/ and build again")
    if bad:
        sys.exit("\n".join(f"check_kernels: {line}" for line in bad))
    print(f"{n_kernels} kernels for {', '.join(sorted(architectures)) or 'no architecture'} keep out of local memory")


if __name__ == "__main__":
    main()
