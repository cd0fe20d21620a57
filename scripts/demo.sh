#!/usr/bin/env bash
# From nothing to a proven result: installs what is missing, builds, quantizes the model that the repository carries, verifies the
# output, and measures how far it is from the original.  On the GPU if there is one, else on the CPU.  Ten minutes with
# installation on two cores, under two without.
#   scripts/demo.sh [OUTPUT DIRECTORY]      default: build/demo
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/demo}

scripts/setup.sh
scripts/build.sh
mkdir -p "$out"

for bits in 4 3; do
    echo
    echo "== $bits bits, group 128, calibrated on 128 rows"
    rm -rf "$out/w$bits" "$out/w$bits.work"
    build/qalib quantize -m demo/model -o "$out/w$bits" --method gptq --bits $bits --group-size 128 --sym \
        --calib demo/demo-calib.h5 | tail -n 6
    build/qalib verify "$out/w$bits"
done

echo
echo "== what it costs in quality (tokens that were not used for calibration)"
printf '%-22s %10s %12s %10s %14s\n' model bytes perplexity 'mean KL' 'same top token'
row() { # name directory
    build/qalib eval -m "$2" --tokens demo/demo-eval.h5 --base demo/model --json --progress none >"$out/eval.json"
    bytes=$(cat "$2"/*.safetensors | wc -c)
    python3 - "$1" "$bytes" "$out/eval.json" <<'PY'
import json, sys
e = json.load(open(sys.argv[3]))
print(f"{sys.argv[1]:22} {int(sys.argv[2]):10d} {e['perplexity']:12.4f} {e['kld_mean']:10.5f} {100 * e['top1_agreement']:12.2f} %")
PY
}
row 'original (bf16)' demo/model
row 'GPTQ 4 bits' "$out/w4"
row 'GPTQ 3 bits' "$out/w3"
echo
echo "load it: vllm serve $out/w4      or      AutoModelForCausalLM.from_pretrained(\"$out/w4\")"
