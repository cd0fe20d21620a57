#!/usr/bin/env bash
# Everything that needs a GPU, in one call under ten minutes:  scripts/gpu_suite.sh DIR
#   tests      every operation on the GPU against the double-precision references
#   job        the demo model quantized and evaluated on the GPU and on the CPU, and how far apart the results are
#   benchmarks of the products and of calibration, beside the library's dense products
# Programs come from a bundle (scripts/bundle.sh) if this script lies in one or build/bundle has one, else they are built.
# Leaves in DIR: summary.json, tests.log, job.log, bench.log, bench-*.json, roofline.svg, build.log.  Exit 0: all passed; 1: something failed; 69: no GPU here.
set -uo pipefail
[ $# -eq 1 ] || { echo "usage: scripts/gpu_suite.sh DIR" >&2; exit 64; }
mkdir -p "$1" || exit 73
results=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 70

if ! command -v nvidia-smi >/dev/null; then
    echo "gpu_suite: no GPU here: nvidia-smi was not found"
    exit 69
fi
gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>&1 | head -n 1)
if ! nvidia-smi -L 2>/dev/null | grep -q '^GPU 0'; then
    echo "gpu_suite: no GPU here: nvidia-smi says: $gpu"
    exit 69
fi

deadline=560 # seconds for everything
failures=() timings=()
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# step NAME LIMIT LOG COMMAND...: within its limit and what is left of the whole; a failure is noted, the rest goes on.
step() {
    local name=$1 limit=$2 log=$results/$3 begin=$SECONDS status
    shift 3
    [ $((deadline - SECONDS)) -gt "$limit" ] || limit=$((deadline - SECONDS))
    echo "== $name" >>"$log"
    if [ "$limit" -le 0 ]; then
        echo "no time left" >>"$log"
        status=124
    else
        timeout -k 5 "$limit" "$@" >>"$log" 2>&1
        status=$?
    fi
    timings+=("\"$name\": {\"seconds\": $((SECONDS - begin)), \"status\": $status}")
    [ $status -eq 0 ] || failures+=("$name")
    echo "$name: $([ $status -eq 0 ] && echo passed || echo "FAILED ($status), see $(basename "$log")") after $((SECONDS - begin)) s"
    return $status
}

# ---- programs ---------------------------------------------------------------------------------------------------------------

build() {
    cmake --preset cuda && cmake --build build/cuda && cmake --build build/cuda --target test_operations test_fragments test_hopper stats_distance
}
export -f build
rm -f "$results"/{build,tests,job,bench}.log "$results"/{summary,gpu,cpu}.json "$results"/bench-*.json "$results/roofline.svg"
if [ -x bin/qalib ]; then
    bin=$PWD/bin commit=$(cat COMMIT)
elif [ -x build/bundle/bin/qalib ]; then
    bin=$PWD/build/bundle/bin commit=$(cat build/bundle/COMMIT)
else
    commit=$(git describe --always --dirty --abbrev=40 2>/dev/null || echo unknown)
    step build 300 build.log bash -c build || exit 1
    bin=$PWD/build/cuda
fi
[ -d demo ] && demo=$PWD/demo || demo=$PWD/build/bundle/demo

# CUDA's libraries where the loader does not look by itself: beside the compiler, or inside Python packages.
if ldd "$bin/qalib" | grep -q 'not found'; then
    for place in /usr/local/cuda*/lib64 /usr/local/cuda*/targets/*/lib \
        $(python3 -c 'import glob, sys; print(*[p for s in sys.path for p in glob.glob(s + "/nvidia/*/lib")])' 2>/dev/null); do
        [ -d "$place" ] && LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$place
    done
    export LD_LIBRARY_PATH
fi
ldd "$bin/qalib" | grep 'not found' && { echo "gpu_suite: libraries are missing"; exit 1; }

# ---- tests --------------------------------------------------------------------------------------------------------------------

# Every family in a process of its own: a kernel that goes astray must not take the others along.
families=$("$bin/test_operations" --list)
for family in $families; do
    step "test $family" 60 tests.log "$bin/test_operations" "$family"
done
# The instructions that the kernels are made of; 77 says that this GPU lacks them.
for program in test_fragments test_hopper; do
    step "$program" 60 tests.log bash -c '"$0" || [ $? -eq 77 ]' "$bin/$program"
done
if grep -q '^skip: no CUDA device' "$results/tests.log" 2>/dev/null; then
    echo "FAILED: $(grep -m 1 '^skip: no CUDA device' "$results/tests.log")"
    failures+=("the tests found no CUDA device")
fi

# ---- the job on both devices -----------------------------------------------------------------------------------------------

job() { # DEVICE
    local device=$1 out=$work/$1
    "$bin/qalib" calibrate -m "$demo/model" --calib "$demo/demo-calib.h5" -w "$out.stats" --device "$device" &&
        "$bin/qalib" quantize -m "$demo/model" -o "$out" --method gptq --bits 4 --group-size 128 --sym \
            --calib "$demo/demo-calib.h5" --device "$device" &&
        "$bin/qalib" verify "$out" &&
        "$bin/qalib" eval -m "$out" --tokens "$demo/demo-eval.h5" --base "$demo/model" --device "$device" --json >"$results/$device.json"
}
export -f job
export bin demo work results
compared="null"
if [ -d "$demo/model" ]; then
    step "job cuda" 120 job.log bash -c 'job cuda'
    step "job cpu" 180 job.log bash -c 'job cpu'
    step "statistics apart" 30 job.log bash -c '"$bin/stats_distance" "$demo/model" "$work/cpu.stats" "$work/cuda.stats" | tee "$work/distance"'
    # Perplexity: summation noise of 1e-5 in H moves it by 0.1 % at 4 bits.  H: FP32 sums of some 30,000 tokens.
    step "results apart" 10 job.log python3 - "$results/cuda.json" "$results/cpu.json" "$work/distance" <<'PYTHON'
import json, sys
gpu, cpu, h = (json.load(open(path)) for path in sys.argv[1:])
apart = abs(gpu["perplexity"] / cpu["perplexity"] - 1)
print("perplexity: cuda %.6g, cpu %.6g, apart %.2g; H apart %.2g" % (gpu["perplexity"], cpu["perplexity"], apart, h["hessian"]))
sys.exit(not (apart < 2e-3 and h["hessian"] < 1e-4 and gpu["n_tokens"] == cpu["n_tokens"]))
PYTHON
    compared=$(cat "$work/distance" 2>/dev/null || echo null)
fi

# ---- benchmarks, summary ----------------------------------------------------------------------------------------------------

# name, limit in seconds, options: a table that is cut short keeps what it has.
bench() {
    local name=$1 limit=$2
    shift 2
    step "bench $name" "$limit" bench.log bash -c 'out=$1; shift; "$bin/qalib" bench --device cuda --progress none --json "$@" >"$out"' - "$results/bench-$name.json" "$@"
}
nvidia-smi --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu --format=csv >>"$results/bench.log" 2>&1
bench products 200 --op w4a16,int8,fp8 --model llama-3-70b --m 1,16,256,4096 --peers --choices "$work/choices" --svg "$results/roofline.svg"
bench calibration 90 --op hessian,factor,gptq --n 8192 --k 8192 --m 16384 --peers
bench attention 30 --op attention,attention_cached --model llama-3-70b --m 4096
nvidia-smi --query-gpu=clocks.sm,clocks.mem,power.draw,temperature.gpu --format=csv >>"$results/bench.log" 2>&1

{
    echo "{\"commit\": \"$commit\", \"gpu\": \"$gpu\", \"device\": $("$bin/qalib" doctor --json | tr -d '\n'),"
    echo " \"statistics_apart\": ${compared:-null}, \"seconds\": $SECONDS, \"failed\": ${#failures[@]},"
    (IFS=,; echo " \"steps\": {${timings[*]}}}")
} >"$results/summary.json"
if [ ${#failures[@]} -gt 0 ]; then
    printf 'gpu_suite: FAILED: %s\n' "${failures[@]}"
    exit 1
fi
echo "gpu_suite: all passed on $gpu after $SECONDS s"
