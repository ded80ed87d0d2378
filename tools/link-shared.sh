#!/bin/sh
# Links libkigo.so.0 from the static library, so that it exports exactly the symbols of kigo.map, with their version.
# (rustc would also export the C symbols of every dependency, and give none a version.)
#
# usage: tools/link-shared.sh LIBKIGO_A OUTPUT_DIRECTORY
# environment: CC (default: cc), LDFLAGS (added at the end)
set -eu

if [ $# -ne 2 ]; then
    echo "usage: $0 LIBKIGO_A OUTPUT_DIRECTORY" >&2
    exit 2
fi
archive=$1
output=$2
map=$(dirname "$0")/../kigo.map
soname=libkigo.so.0

mkdir -p "$output"
# A build without the feature worker-abi has no worker functions.
if ! nm -g --defined-only "$archive" 2>/dev/null | grep -q ' T cuda_init$'; then
    sed '/^KIGO_WORKER_0 {$/,/^};$/d' "$map" > "$output/kigo.map"
    map=$output/kigo.map
fi
# An archive gives only what is asked for, so every exported symbol is.
wanted=$(sed -n 's/^ *\([a-z0-9_]*\);$/-Wl,-u,\1/p' "$map")
# shellcheck disable=SC2086
${CC:-cc} -shared -o "$output/$soname" -Wl,-soname,$soname -Wl,--version-script="$map" $wanted \
    -Wl,--gc-sections -Wl,--strip-debug -Wl,-z,defs -Wl,-z,nodelete -Wl,-z,relro -Wl,-z,now -Wl,-z,noexecstack \
    "$archive" -lpthread -ldl -lm -lgcc_s -lc ${LDFLAGS:-}
ln -sf $soname "$output/libkigo.so"
