#!/bin/sh
# Checks and measures kigo on a machine with an NVIDIA GPU and its driver. Needs no Rust, no compiler, no network.
#
#   run.sh check                 says whether there is a GPU; 2 if not, as from every other part
#   run.sh test [SMOLLM2]        the GPU tests; those that read SmolLM2-135M-Instruct Q4_1 only with its path
#   run.sh haiku SMOLLM2         a haiku with the current minute, then the anti-cheat check at KIGO_TEST_MINUTES
#   run.sh sanitize              memcheck, racecheck, initcheck and synccheck on a small model
#   run.sh bench MODEL...        kigo-bench on each; KIGO_BENCH_ARGS is added
#   run.sh all SMOLLM2 [MODEL..] all of these; bench of all the models
#
# KIGO_GEMMA3 is the path of Gemma 3 270M Q4_K_M (gemma-3-270m-q4_k_m.gguf); without it the tests that read it are skipped.
#
# Logs and the JSON of kigo-bench go to $OUT, else to out/ beside this script. KIGO_TEST_DEVICE names the device
# (default: cuda). The last lines are a table; the status is 1 if something failed.
set -u

here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$here/out}
summary=''
failed=0
export KIGO_BUNDLE="$here"
export KIGO_TEST_DEVICE="${KIGO_TEST_DEVICE:-cuda}"

# part NAME COMMAND...: runs the command and notes how it ended.
part() {
    name=$1
    shift
    echo "== $name: $*"
    started=$(date +%s)
    { "$@" 2>&1; echo $? >"$out/status"; } | tee "$out/$name.log"
    status=$(cat "$out/status")
    rm "$out/status"
    case $status in
        0) note "$name" passed "$(($(date +%s) - started)) s" ;;
        *) note "$name" FAILED "status $status" && failed=1 ;;
    esac
}

note() {
    summary="$summary$(printf '%-28s %-8s %s' "$1" "$2" "$3")
"
}

usage() {
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

check() {
    case $KIGO_TEST_DEVICE in
        cuda*) ;;
        *) echo "run.sh: KIGO_TEST_DEVICE is $KIGO_TEST_DEVICE, expected cuda or cuda:N: nothing was checked" >&2 && exit 2 ;;
    esac
    if [ ! -e /dev/nvidiactl ] && [ ! -e /dev/dxg ] && ! nvidia-smi -L >/dev/null 2>&1; then
        echo "run.sh: no NVIDIA GPU here (no /dev/nvidiactl, and nvidia-smi shows none): nothing was checked" >&2
        exit 2
    fi
    nvidia-smi --query-gpu=index,name,driver_version,memory.total,memory.used --format=csv,noheader 2>/dev/null
}

# use_model PATH NAME: puts a model where the tests look for it.
use_model() {
    [ -f "$1" ] || { echo "run.sh: no file $1" >&2; exit 2; }
    KIGO_CACHE="$out/cache"
    export KIGO_CACHE
    mkdir -p "$KIGO_CACHE"
    ln -sf "$(cd "$(dirname "$1")" && pwd)/$(basename "$1")" "$KIGO_CACHE/$2"
}

use_smollm2() {
    use_model "$1" SmolLM2-135M-Instruct.Q4_1.gguf
}

# tests NAME ARGUMENTS...: tests of the GPU, one at a time, since some look at its free memory.
tests() {
    name=$1
    shift
    part "$name" "$here/bin/gpu" --ignored --test-threads=1 --nocapture "$@"
}

run_test() {
    skip=''
    if [ -n "${KIGO_GEMMA3:-}" ]; then
        use_model "$KIGO_GEMMA3" gemma-3-270m-q4_k_m.gguf
    else
        skip='--skip gemma3_'
    fi
    if [ $# -gt 0 ]; then
        use_smollm2 "$1"
    else
        skip="$skip --skip smollm2"
        KIGO_SKIP_MODELS=1
        export KIGO_SKIP_MODELS
    fi
    # shellcheck disable=SC2086
    tests test $skip
    [ $# -gt 0 ] || note test-smollm2 skipped 'no path of SmolLM2 was given'
    [ -n "${KIGO_GEMMA3:-}" ] || note test-gemma3 skipped 'KIGO_GEMMA3 names no file'
}

run_haiku() {
    [ $# -gt 0 ] || usage
    use_smollm2 "$1"
    part haiku "$here/bin/haiku" "$1" "$KIGO_TEST_DEVICE"
    export KIGO_TEST_MINUTES="${KIGO_TEST_MINUTES:-0,7,19,30,42,58}"
    part anti-cheat "$here/bin/anti_cheat" --nocapture haiku_generation_anti_cheat
}

run_sanitize() {
    sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
    if [ -z "$sanitizer" ]; then
        note sanitize skipped 'no compute-sanitizer here'
        return
    fi
    for tool in memcheck racecheck initcheck synccheck; do
        more=''
        [ $tool = memcheck ] && more='--leak-check full'
        # Each warp of each block has barriers of its own, more than the tool tracks unasked.
        [ $tool = synccheck ] && more='--num-cuda-barriers 16384'
        # shellcheck disable=SC2086
        part $tool "$sanitizer" --tool $tool $more --error-exitcode 9 \
            "$here/bin/gpu" --ignored --test-threads=1 --exact sanitize::two_layers_of_odd_sizes
    done
}

run_bench() {
    [ $# -gt 0 ] || usage
    for model; do
        name=$(basename "$model" .gguf)
        # shellcheck disable=SC2086
        part "bench-$name" "$here/bin/kigo-bench" "$model" --device "$KIGO_TEST_DEVICE" \
            --json "$out/$name.json" ${KIGO_BENCH_ARGS:-}
    done
}

[ $# -gt 0 ] || usage
what=$1
shift
check
[ "$what" = check ] && exit
mkdir -p "$out"
case $what in
    test) run_test "$@" ;;
    haiku) run_haiku "$@" ;;
    sanitize) run_sanitize ;;
    bench) run_bench "$@" ;;
    all)
        [ $# -gt 0 ] || usage
        run_test "$1"
        run_sanitize
        run_haiku "$1"
        run_bench "$@"
        ;;
    *) usage ;;
esac
printf '\n%s' "$summary"
exit $failed
