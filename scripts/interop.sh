#!/usr/bin/env bash
# Loads what we write with other people's readers: every weight, and perplexity and logits where a runtime runs on a CPU.  One table,
# format | reader | version | verdict.
#   scripts/interop.sh          the carried demo model; the readers come into build/interop from the package registry (about 6 GB);
#                               llama.cpp is built from source (20 minutes on two cores)
#   QALIB_PYTHON=python         an environment that has them
# A reader that cannot be had is a row of its own.  Exit 1 if a weight differs, or a runtime's numbers by more than its arithmetic explains.
set -euo pipefail
cd "$(dirname "$0")/.."
qalib=${QALIB:-build/qalib}
model=demo/model
out=${QALIB_INTEROP:-build/interop}
mkdir -p "$out"
for program in "$qalib" "${QALIB_BUILD:-build}/dump_weights"; do
    [ -x "$program" ] || { echo "$program: missing; scripts/setup.sh --test && scripts/build.sh make it" >&2; exit 69; }
done

python=${QALIB_PYTHON:-}
if [ -z "$python" ]; then
    [ -x "$out/venv/bin/python" ] || python3 -m venv "$out/venv"
    python=$out/venv/bin/python
    export CMAKE_BUILD_PARALLEL_LEVEL=2 # for llama.cpp, as for the next line
    export CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DLLAVA_BUILD=OFF -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF"
    for package in "numpy safetensors h5py gguf" "torch transformers accelerate sentencepiece" compressed-tensors bitsandbytes \
        gptqmodel "llama-cpp-python --no-binary llama-cpp-python"; do
        # shellcheck disable=SC2086 # several words
        nice -n 15 "$python" -m pip install -q $package >"$out/pip.log" 2>&1 || echo "not installed: $package (${out}/pip.log)" >&2
    done
fi

# make NAME FORMAT OPTION...: the directory, and the same weights as a plain checkpoint, which is what readers must come to.
make() {
    local name=$1 format=$2
    shift 2
    for kind in "$format" dense; do
        local dir=$out/$name
        [ "$kind" = dense ] && dir=$out/$name.dense
        rm -rf "$dir" "$dir.work"
        "$qalib" quantize --quiet -m "$model" -o "$dir" --format "$kind" "$@" >"$out/quantize.log"
        rm -rf "$dir.work"
    done
    "$qalib" verify "$out/$name" >"$out/verify.log"
    names+=("$name")
}
names=()
calib=(--calib demo/demo-calib.h5)
make gptq-w4 gptq --method rtn --group-size 64
make gptq-v2-w4-asym gptq_v2 --method rtn --group-size 64 --asym
make awq-w4 awq --method rtn --group-size 64 --asym
make ct-w4a16 compressed-tensors --method rtn --group-size 128
make ct-w4a16-asym compressed-tensors --method rtn --group-size 64 --asym
make ct-w8a16 compressed-tensors --method rtn --bits 8 --group-size -1
make ct-w8a8 compressed-tensors --method rtn --bits 8 --group-size -1 --activations token
make ct-w8a8-static compressed-tensors --method rtn --bits 8 --group-size -2 --activations static "${calib[@]}"
make ct-fp8 compressed-tensors --type fp8 --activations token
make ct-fp8-static compressed-tensors --type fp8 --group-size -2 --activations static "${calib[@]}"
make ct-fp8-block compressed-tensors --type fp8 --group-size 128 --activations token
make fp8-block fp8 --type fp8 --group-size 128
make nf4 bitsandbytes --type nf4
rm -rf "$out/gguf" "$out"/gguf.work* "$out/stats"
"$qalib" quantize --quiet -m "$model" -o "$out/gguf" --scheme F16,Q8_0,Q4_0,Q5_1,IQ4_NL,Q2_K,Q3_K_M,Q4_K_M,Q5_K_M "${calib[@]}" >"$out/quantize.log"
"$qalib" calibrate --quiet -m "$model" -w "$out/stats" "${calib[@]}" >"$out/calibrate.log"
export TORCHDYNAMO_DISABLE=1 QALIB=$qalib QALIB_BUILD=${QALIB_BUILD:-build} OMP_WAIT_POLICY=passive
"$python" scripts/interop "$out" "${names[@]}" 2>"$out/readers.log" | tee "$out/table.md"
