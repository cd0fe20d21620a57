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

# name, options...: the same job on both backends; mean KL within 5 % (codes near a rounding tie differ)
both() {
    local name=$1
    shift
    "$emulated" quantize --device cuda -m "$tmp/model" -o "$tmp/$name-cuda" --bits 4 --group-size 32 --calib "$tmp/tokens.h5" --progress none -q "$@" >/dev/null
    "$qalib" quantize --device cpu -m "$tmp/model" -o "$tmp/$name-cpu" --bits 4 --group-size 32 --calib "$tmp/tokens.h5" --progress none -q "$@" >/dev/null
    "$qalib" verify "$tmp/$name-cuda" >/dev/null
    for backend in cuda cpu; do
        "$qalib" eval --device cpu -m "$tmp/$name-$backend" --tokens "$tmp/tokens.h5" --base "$tmp/model" --json --progress none -q >"$tmp/$backend.json"
    done
    kl=$(json "$tmp/cpu.json" 'j["kld_mean"]')
    holds "$tmp/cuda.json" "abs(j['kld_mean'] / $kl - 1) < 0.05"
}
both default
both literature --literature --act-order dynamic --asym
both block --sequential off --act-order none

"$emulated" eval --device cuda -m "$tmp/default-cpu" --tokens "$tmp/tokens.h5" --json --progress none -q >"$tmp/cuda.json"
"$qalib" eval --device cpu -m "$tmp/default-cpu" --tokens "$tmp/tokens.h5" --json --progress none -q >"$tmp/cpu.json"
nll=$(json "$tmp/cpu.json" 'j["nll"]')
holds "$tmp/cuda.json" "abs(j['nll'] / $nll - 1) < 1e-5" # FP32 sums in another order

# Logits of a random model lie far further apart than FP32 sums in another order move them: the same ids.
for model in "$tmp/model" "$tmp/default-cpu"; do
    "$emulated" generate --device cuda -m "$model" --ids 3,1,4,1,5 -n 12 --json --progress none -q >"$tmp/cuda.json"
    "$qalib" generate --device cpu -m "$model" --ids 3,1,4,1,5 -n 12 --json --progress none -q >"$tmp/cpu.json"
    holds "$tmp/cuda.json" "j['ids'] == $(json "$tmp/cpu.json" 'j["ids"]') and len(j['ids']) == 12"
done

"$emulated" calibrate --device cuda -m "$tmp/model" --calib "$tmp/tokens.h5" -w "$tmp/stats-cuda" --progress none -q >/dev/null
"$qalib" calibrate --device cpu -m "$tmp/model" --calib "$tmp/tokens.h5" -w "$tmp/stats-cpu" --progress none -q >/dev/null
"$build/stats_distance" "$tmp/model" "$tmp/stats-cpu" "$tmp/stats-cuda" >"$tmp/distance"
holds "$tmp/distance" 'j["hessian"] < 1e-5 and j["sum_sq"] < 1e-5' # the same FP32 pass, sums in another order
echo "emulated: the job on the CUDA backend's code"
