#!/usr/bin/env bash
# Methods that go together, on a small model with outliers planted in its activations, and several outputs of one recipe.
source "$(dirname "$0")/../e2e_lib.sh"

"$build/make_model" "$tmp/plain" --layers 2 --tokens "$tmp/tokens.h5"
mkdir "$tmp/model"
cp "$tmp"/plain/*.json "$tmp/model"
"$build/plant_outliers" "$tmp/plain" "$tmp/model"
run() { "$qalib" quantize -m "$tmp/model" --calib "$tmp/tokens.h5" --progress none "$@" >/dev/null; }

# kl NAME OPTIONS...: of the result to the model, on the calibration rows.
kl() {
    local name=$1
    shift
    run -o "$tmp/$name" --statistics fp "$@"
    "$qalib" verify "$tmp/$name" --against "$tmp/model" >/dev/null
    "$qalib" eval -m "$tmp/$name" --tokens "$tmp/tokens.h5" --base "$tmp/model" --json --progress none >"$tmp/$name.json"
    json "$tmp/$name.json" 'j["kld_mean"]'
}
gains() { # WHAT ALONE TOGETHER [FACTOR]
    printf '%-28s %s, alone %s\n' "$1" "$3" "$2"
    python3 -c "import sys; sys.exit(not 0 < $3 < ${4:-1} * $2)" || fail "$1: $3 is no gain over $2"
}
int8="--bits 8 --group-size -1 --activations token --format compressed-tensors --method gptq"
gains "AWQ, then GPTQ" "$(kl gptq --group-size 32 --asym)" "$(kl awq-gptq --group-size 32 --asym --smoothing awq)"
gains "SmoothQuant, then GPTQ, W8A8" "$(kl w8a8 $int8)" "$(kl smooth-w8a8 $int8 --smoothing smoothquant)"
gains "clipping, then rounding" "$(kl rtn --method rtn --group-size 32 --asym)" "$(kl clip --method rtn --group-size 32 --asym --clip on)"
gains "importance, then rounding" "$(kl rtn3 --method rtn --bits 3 --group-size 32)" "$(kl weighted --method rtn --bits 3 --group-size 32 --scale-search importance)" 1.02 # measured 0.998: 3 bits and random weights

# Several outputs of one recipe: the bytes that --scheme gives, and that each recipe gives alone.
printf 'version: 1\noutputs:\n  - W4A16-AWQ-g32\n  - name: careful\n    scheme: W4A16-GPTQ-g32\n    damp: 0.1\n' >"$tmp/outputs.yaml"
printf 'version: 1\nscheme: W4A16-GPTQ-g32\ndamp: 0.1\n' >"$tmp/alone.yaml"
printf 'version: 1\noutputs:\n  - W4A17\n' >"$tmp/bad.yaml"
run -o "$tmp/several" --recipe "$tmp/outputs.yaml"
run -o "$tmp/schemes" --scheme W4A16-AWQ-g32
run -o "$tmp/alone" --recipe "$tmp/alone.yaml" --statistics fp
cmp "$tmp/several/W4A16-AWQ-g32/model.safetensors" "$tmp/schemes/W4A16-AWQ-g32/model.safetensors"
cmp "$tmp/several/careful/model.safetensors" "$tmp/alone/model.safetensors"
expect 78 'line 3: scheme "W4A17"' run -o "$tmp/none" --recipe "$tmp/bad.yaml"
[ ! -e "$tmp/none" ] || fail "a recipe that was refused left an output"
echo "methods: what goes together gains, several outputs are those of each alone"
