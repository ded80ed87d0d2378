#!/bin/sh
# Fills a folder with everything that checks and measures kigo on a machine that has a GPU and its driver, but neither
# Rust nor a compiler: see tests/gpu/run.sh, which becomes its run.sh. The folder may be copied anywhere.
#
# usage: tools/gpu-bundle.sh SHARED_LIBRARY OUTPUT_DIRECTORY
# environment: CARGO, CC, RUSTFLAGS; PROFILE (default: --release)
set -eu

if [ $# -ne 2 ]; then
    echo "usage: $0 SHARED_LIBRARY OUTPUT_DIRECTORY" >&2
    exit 2
fi
shared=$1
output=$2
cargo=${CARGO:-cargo}
profile=${PROFILE:---release}
most_megabytes=60
cd "$(dirname "$0")/.."
KIGO_COMMIT=$(git describe --always --dirty 2>/dev/null || echo unknown)
export KIGO_COMMIT

# install_program NAME CARGO_ARGUMENTS...: builds a program and puts it, stripped, into bin.
install_program() {
    name=$1
    shift
    # shellcheck disable=SC2086
    program=$($cargo "$@" $profile --message-format=json | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
    [ -f "$program" ] || { echo "$0: cargo built no program $name: $program" >&2; exit 1; }
    strip -o "$output/bin/$name" "$program"
}

# install_c NAME SOURCE: the same for a C program that uses the shared library.
install_c() {
    ${CC:-cc} -O2 -Wall -Wextra -D_POSIX_C_SOURCE=200809L -Iinclude -s -o "$output/bin/$1" "$2" "$shared" \
        -Wl,-rpath,'$ORIGIN/../lib'
}

rm -rf "$output"
mkdir -p "$output/bin" "$output/lib" "$output/data/logits" "$output/data/arch" "$output/tools"
install_program gpu test --no-run --test gpu
install_program anti_cheat test --no-run --test anti_cheat
install_program kigo-bench build -p kigo-bench
install_c haiku examples/haiku.c
install_c start benches/start.c
install_c generate tests/c_api/generate.c
cp "$shared" "$output/lib/libkigo.so.0"
cp tests/data/tiny-llama* "$output/data/"
cp tests/data/logits/*.json "$output/data/logits/"
cp tests/data/arch/* "$output/data/arch/"
cp tests/data/gemma3.json "$output/data/"
cp tools/synth_gguf.py tools/gguf_shapes.py "$output/tools/"
cp tests/gpu/run.sh "$output/run.sh"
echo "$KIGO_COMMIT" >"$output/COMMIT"

du -ah "$output"/* | sort -h | tail -n 12
megabytes=$(du -sm "$output" | cut -f 1)
if [ "$megabytes" -gt $most_megabytes ]; then
    echo "$0: $output has $megabytes MB, expected at most $most_megabytes; build for fewer GPUs (KIGO_CUDA_ARCHS)" >&2
    exit 1
fi
echo "built $output for $KIGO_COMMIT: $megabytes MB"
