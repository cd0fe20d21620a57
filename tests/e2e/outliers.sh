#!/usr/bin/env bash
# A model whose activations have outliers: plain rounding loses them, AWQ keeps them.
source "$(dirname "$0")/../e2e_lib.sh"

mkdir "$tmp/model"
cp "$demo"/model/*.json "$tmp/model"
rm -f "$tmp/model/model.safetensors.index.json"
"$build/plant_outliers" "$demo/model" "$tmp/model"

# The planted model is the demo model: the same logits, bit for bit but for the order of sums.
"$qalib" eval -m "$tmp/model" --tokens "$demo/demo-eval.h5" --base "$demo/model" --json >"$tmp/same.json"
holds "$tmp/same.json" 'j["kld_mean"] < 1e-9 and j["top1_agreement"] > 0.9999'

# quantized NAME OPTIONS...: KL of the result in $tmp/NAME.json.
quantized() {
    local name=$1
    shift
    "$qalib" quantize -m "$tmp/model" -o "$tmp/$name" --calib "$demo/demo-calib.h5" "$@" >/dev/null
    "$qalib" verify "$tmp/$name" --against "$tmp/model" >/dev/null
    "$qalib" eval -m "$tmp/$name" --tokens "$demo/demo-eval.h5" --base "$tmp/model" --json >"$tmp/$name.json"
}
quantized rtn --method rtn --asym
quantized awq --method rtn --asym --smoothing awq --clip on
kl() { json "$tmp/$1.json" 'j["kld_mean"]'; }
printf 'outliers: KL of 4 bits rounded to nearest %s, with AWQ %s\n' "$(kl rtn)" "$(kl awq)"
python3 -c "import sys; sys.exit(not $(kl awq) < 0.5 * $(kl rtn))" || fail "AWQ does not gain on outliers"
