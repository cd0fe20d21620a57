#!/usr/bin/env bash
# The whole job on the CUDA backend's own code, compiled for the processor (tests/emulated_cuda): no GPU is needed, and no claim
# about one is made. The files must be as good as the CPU backend's, and Hessians of the same inputs agree.
source "$(dirname "$0")/../e2e_lib.sh"
emulated=$build/qalib_emulated
if [ ! -x "$emulated" ]; then
    echo "skip: no C++ compiler, so no emulated CUDA backend"
    exit 0
fi
"$build/make_model" "$tmp/model" --rows 4 --tokens "$tmp/tokens.h5"

# name, apart, options...: the same job on both backends; mean KL so far apart (codes near a rounding tie differ, in BF16 more of them)
both() {
    local name=$1 apart=$2
    shift 2
    quiet=(--progress none -q) short=(--refine 1)
    [ "$name" != literature ] || short=()
    "$emulated" quantize --device cuda -m "$tmp/model" -o "$tmp/$name-cuda" --bits 4 --group-size 32 "${short[@]}" --calib "$tmp/tokens.h5" "${quiet[@]}" "$@" >/dev/null
    "$qalib" quantize --device cpu -m "$tmp/model" -o "$tmp/$name-cpu" --bits 4 --group-size 32 "${short[@]}" --calib "$tmp/tokens.h5" "${quiet[@]}" "$@" >/dev/null
    "$qalib" verify "$tmp/$name-cuda" >/dev/null
    for backend in cuda cpu; do
        "$qalib" eval --device cpu -m "$tmp/$name-$backend" --tokens "$tmp/tokens.h5" --base "$tmp/model" --json "${quiet[@]}" >"$tmp/$backend.json"
    done
    kl=$(json "$tmp/cpu.json" 'j["kld_mean"]')
    holds "$tmp/cuda.json" "abs(j['kld_mean'] / $kl - 1) < $apart"
}
both default 0.05 --precision fp32
both half 0.1 --precision bf16
both literature 0.05 --literature --act-order dynamic --asym --precision fp32
both block 0.1 --sequential off --act-order none --precision bf16

"$emulated" eval --device cuda --precision fp32 -m "$tmp/default-cpu" --tokens "$tmp/tokens.h5" --json --progress none -q >"$tmp/cuda.json"
"$qalib" eval --device cpu -m "$tmp/default-cpu" --tokens "$tmp/tokens.h5" --json --progress none -q >"$tmp/cpu.json"
nll=$(json "$tmp/cpu.json" 'j["nll"]')
holds "$tmp/cuda.json" "abs(j['nll'] / $nll - 1) < 1e-5" # FP32 sums in another order

# A pass in BF16, which a GPU takes by default, beside one in FP32 on the processor: the original, and 4 bits through packed products.
for name in model default-cpu; do
    "$emulated" eval --device cuda -m "$tmp/$name" --tokens "$tmp/tokens.h5" --json --progress none -q >"$tmp/cuda.json"
    "$qalib" eval --device cpu -m "$tmp/$name" --tokens "$tmp/tokens.h5" --json --progress none -q >"$tmp/cpu.json"
    perplexity=$(json "$tmp/cpu.json" 'j["perplexity"]')
    holds "$tmp/cuda.json" "j['forward'] == 'bf16' and 0 < abs(j['perplexity'] / $perplexity - 1) < 1e-3"
done
holds "$tmp/half-cuda/report.json" "j['forward'] == 'bf16' and j['environment']['rows'] == 'device'"

# Logits of a random model lie far further apart than FP32 sums in another order move them: the same ids.
for model in "$tmp/model" "$tmp/default-cpu"; do
    "$emulated" generate --device cuda -m "$model" --ids 3,1,4,1,5 -n 12 --json --progress none -q >"$tmp/cuda.json"
    "$qalib" generate --device cpu -m "$model" --ids 3,1,4,1,5 -n 12 --json --progress none -q >"$tmp/cpu.json"
    holds "$tmp/cuda.json" "j['ids'] == $(json "$tmp/cpu.json" 'j["ids"]') and len(j['ids']) == 12"
done

for type in fp32 bf16; do
    "$emulated" calibrate --device cuda --precision $type -m "$tmp/model" --calib "$tmp/tokens.h5" -w "$tmp/stats-cuda-$type" --progress none -q >/dev/null
    "$qalib" calibrate --device cpu --precision $type -m "$tmp/model" --calib "$tmp/tokens.h5" -w "$tmp/stats-cpu-$type" --progress none -q >/dev/null
done
"$build/stats_distance" "$tmp/model" "$tmp/stats-cpu-fp32" "$tmp/stats-cuda-fp32" >"$tmp/distance"
holds "$tmp/distance" 'j["hessian"] < 1e-5 and j["sum_sq"] < 1e-5' # the same FP32 pass, sums in another order
"$build/stats_distance" "$tmp/model" "$tmp/stats-cpu-fp32" "$tmp/stats-cuda-bf16" >"$tmp/distance"
holds "$tmp/distance" '0 < j["hessian"] < 1e-2 and 0 < j["sum_sq"] < 1e-2'

# Wherever rows wait, the bytes are the same; where they wait is said, and so is that nothing is enough.
"$build/make_model" "$tmp/long" --layers 1 --rows 64 --seqlen 16 --tokens "$tmp/long.h5"
place() { # MEMORY PLACE OPTION...: the job in so much memory, with rows in that place
    local memory=$1 place=$2
    shift 2
    rm -rf "$tmp/place" "$tmp/place.work"
    "$emulated" quantize --device cuda -m "$tmp/long" -o "$tmp/place" --bits 4 --group-size 32 --refine 0 --scale-search off --calib "$tmp/long.h5" --max-device-mem "$memory" --progress none -q "$@" >/dev/null
    holds "$tmp/place/report.json" "j['environment']['rows'] == '$place'"
}
orders() { # ORDER BETWEEN HOST: of the linears, and the memories in which rows leave the device
    place 1GB device --sequential "$1"
    whole=$(sha256sum <"$tmp/place/model.safetensors")
    place "$2" "host between steps" --sequential "$1"
    [ "$whole" = "$(sha256sum <"$tmp/place/model.safetensors")" ] || fail "other bytes with rows on the host between steps"
    place "$3" host --sequential "$1"
    [ "$whole" = "$(sha256sum <"$tmp/place/model.safetensors")" ] || fail "other bytes with rows on the host"
}
orders on 35.3MB 35.0MB
orders off 35.1MB 34.7MB
rm -rf "$tmp/place"*
expect 71 "needed with the rows in host memory" "$emulated" quantize --device cuda -m "$tmp/long" -o "$tmp/place" --bits 4 --group-size 32 --calib "$tmp/long.h5" --max-device-mem 30MB

# What a profiler shows of a job: block > linear > phase, every range closed; work on a linear names its method's phases.
QALIB_EMULATED_NVTX="$tmp/ranges" "$emulated" quantize --device cuda -m "$tmp/model" -o "$tmp/ranges-out" --bits 4 --group-size 32 --calib "$tmp/tokens.h5" --progress none -q >/dev/null
python3 - "$tmp/ranges" <<'PY' || fail "ranges"
import re, sys
stack, seen, linears = [], set(), set()
kind = lambda name: "block" if re.fullmatch(r"block \d+", name) else "linear" if re.fullmatch(r"model\.layers\.\d+\.[a-z_.]+_proj", name) else "phase"
order = ["block", "linear", "phase"]
for line in open(sys.argv[1]).read().splitlines():
    if line == "-":
        stack.pop()
        continue
    name = line[1:]
    assert all(order.index(kind(outer)) < order.index(kind(name)) for outer in stack), (stack, name)
    if kind(name) == "linear":
        assert stack[0] == "block " + name.split(".")[2], (stack, name)
        linears.add(name)
    stack.append(name)
    seen.add(tuple(kind(n) if kind(n) != "phase" else n for n in stack))
assert not stack, stack
assert len(linears) == 2 * 7, linears
for expected in [("block", "forward"), ("block", "statistics"), ("block", "linear", "solve"), ("block", "linear", "loss"), ("write",)]:
    assert expected in seen, (expected, seen)
PY
echo "emulated: the job on the CUDA backend's code"
