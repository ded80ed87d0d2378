#!/bin/sh
# Checks and measures kigo on a machine with an NVIDIA GPU and its driver. Needs no Rust, no compiler, no network.
#
#   run.sh check                 says whether there is a GPU; 2 if not, as from every other part
#   run.sh test [SMOLLM2]        the GPU tests; those that read SmolLM2-135M-Instruct Q4_1 only with its path
#   run.sh haiku SMOLLM2         a haiku with the current minute, then the anti-cheat check at KIGO_TEST_MINUTES
#   run.sh sanitize              memcheck, racecheck, initcheck and synccheck on small models
#   run.sh bench MODEL...        kigo-bench on each; KIGO_BENCH_ARGS is added
#   run.sh start MODEL...        from opening the library to the first token, by part, five processes each
#   run.sh all SMOLLM2 [MODEL..] all of these; bench and start of all the models
#   run.sh benchmarks FOLDER [NAME...]
#                                the figures of docs/benchmarks.md: kigo-bench on FOLDER/NAME.gguf, which is made, and
#                                removed afterwards, where it is not there: one at a time, 18 GB. NAME is a shape and a
#                                type of tools/synth_gguf.py, such as llama-8b-q4_k_m; or short, for four of them;
#                                without it all. KIGO_BENCH_ARGS is added. LLAMA_BENCH is a llama-bench to
#                                measure beside, which gets LLAMA_BENCH_ARGS (default: -fa 1)
#
# KIGO_GEMMA3 is the path of Gemma 3 270M Q4_K_M (gemma-3-270m-q4_k_m.gguf); without it the tests that read it are skipped.
#
# Logs and the JSON of kigo-bench go to $OUT, else to out/ beside this script. KIGO_TEST_DEVICE names the device
# (default: cuda; benchmarks also takes cpu). PYTHON (default: python3) has numpy and gguf, for benchmarks alone.
# The last lines are a table; the status is 1 if something failed.
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
        for test in sanitize::two_layers_of_odd_sizes sanitize::two_layers_as_one_kernel \
            stages::products::few_rows_are_handed_on_as_prep_would \
            stages::attention::parts_of_chunks_are_joined_to_the_same_bits; do
            more=''
            # Where whole models are loaded and freed.
            [ $tool-${test%%::*} = memcheck-sanitize ] && more='--leak-check full'
            # Barriers of a block: each warp has some of its own, more than the tool tracks unasked.
            [ $tool = synccheck ] && more='--num-cuda-barriers 4096'
            if [ $tool-$test = racecheck-sanitize::two_layers_as_one_kernel ]; then
                note racecheck-two_layers_as_one_kernel skipped 'the tool does not follow what orders its accesses (docs/gpu-validation.md)'
                continue
            fi
            # shellcheck disable=SC2086
            part $tool-${test##*::} "$sanitizer" --tool $tool $more --error-exitcode 9 \
                "$here/bin/gpu" --ignored --test-threads=1 --exact $test
        done
    done
}

# bench MODEL ARGUMENTS...: measures one model.
bench() {
    model=$1
    file=$(basename "$model" .gguf)
    shift
    # shellcheck disable=SC2086
    part "bench-$file" "$here/bin/kigo-bench" "$model" --device "$KIGO_TEST_DEVICE" --json "$out/$file.json" "$@" \
        ${KIGO_BENCH_ARGS:-}
}

run_bench() {
    [ $# -gt 0 ] || usage
    for model; do
        bench "$model"
    done
}

# starts MODEL: measures starts, after one that brings the files near.
starts() {
    for i in 0 1 2 3 4 5; do
        "$here/bin/start" "$here/lib/libkigo.so.0" "$1" "$KIGO_TEST_DEVICE" >"$out/told" || return
        [ $i -eq 0 ] || cat "$out/told"
    done
    rm "$out/told"
}

run_start() {
    [ $# -gt 0 ] || usage
    for model; do
        part "start-$(basename "$model" .gguf)" starts "$model"
    done
}

# The files of docs/benchmarks.md, and those that say most of them in a third of the time.
all_files='qwen2-0.5b-f16 qwen2-0.5b-q4_k_m llama-1b-f16 llama-1b-q4_k_m llama-8b-f16 llama-8b-q8_0 llama-8b-q4_k_m
    gpt-oss-20b-mxfp4 qwen3-30b-a3b-q4_k_m'
short_files='qwen2-0.5b-q4_k_m llama-1b-f16 llama-8b-f16 llama-8b-q4_k_m'

run_benchmarks() {
    [ $# -gt 0 ] || usage
    folder=$1
    shift
    python=${PYTHON:-python3}
    [ -d "$folder" ] || { echo "run.sh: no folder $folder" >&2; exit 2; }
    "$python" -c 'import gguf, numpy' || { echo "run.sh: $python lacks gguf or numpy; PYTHON names another" >&2; exit 2; }
    [ $# -gt 0 ] || set -- all
    for name; do
        case $name in
            all) files=$all_files ;;
            short) files=$short_files ;;
            *) files=$name ;;
        esac
        for file in $files; do
            benchmark "$folder/$file.gguf" "$file"
        done
    done
}

# benchmark PATH NAME: makes a file where it is not there, measures it, and removes what it made.
benchmark() {
    path=$1
    made=''
    if [ ! -f "$path" ]; then
        made=$path
        # The context that the file states has room for the longest below, and for what is decoded after it.
        part "make-$2" "$python" "$here/tools/synth_gguf.py" --ctx 33024 "${2%-*}" "${2##*-}" "$path"
        [ "$status" = 0 ] || { rm -f "$path"; return; }
    fi
    set -- --decode 128 --context 128,1024,4096,8192,16384,32768 --prompt 16,64,128,512,2048,8192,32768 \
        --batch=1,2,4,8 --reps 3 --temperature 0
    if [ -n "${LLAMA_BENCH:-}" ]; then
        # Two runs: in one it would measure every prompt after every context. kigo-bench sets the variables; it would
        # stop if llama-bench failed, which may not know a model or have no memory for a context.
        theirs="$LLAMA_BENCH -m \"\$BENCH_MODEL\" -r 1 ${LLAMA_BENCH_ARGS:--fa 1}"
        theirs="$theirs -p \$BENCH_PROMPT -n 0 && $theirs -p 0 -n \$BENCH_DECODE -d \$BENCH_CONTEXT"
        set -- "$@" --vs "$theirs || echo llama-bench failed"
    fi
    bench "$path" "$@"
    [ -z "$made" ] || rm -f "$made"
}

[ $# -gt 0 ] || usage
what=$1
shift
[ "$what $KIGO_TEST_DEVICE" = 'benchmarks cpu' ] || check
[ "$what" = check ] && exit
mkdir -p "$out"
case $what in
    test) run_test "$@" ;;
    haiku) run_haiku "$@" ;;
    sanitize) run_sanitize ;;
    bench) run_bench "$@" ;;
    start) run_start "$@" ;;
    benchmarks) run_benchmarks "$@" ;;
    all)
        [ $# -gt 0 ] || usage
        run_test "$1"
        run_sanitize
        run_haiku "$1"
        run_bench "$@"
        run_start "$@"
        ;;
    *) usage ;;
esac
printf '\n%s' "$summary"
exit $failed
