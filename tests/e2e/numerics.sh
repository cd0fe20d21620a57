#!/usr/bin/env bash
# Numbers that break jobs (rows N of tests/FAULTS.md), through the real program: named and refused, or survived and reported.
source "$(dirname "$0")/../e2e_lib.sh"

tokens=$tmp/tokens.h5
out=$tmp/out
# model [OPTIONS]: a fresh one in $m, tokens for it in $tokens.
model() {
    m=$tmp/model
    rm -rf "$m" "$out" "$out.work"
    "$build/make_model" "$m" --tokens "$tokens" "$@"
}
edit() { tests/safetensors_edit.py "$m/model.safetensors" "$@"; }
job() { timeout 20 "$qalib" quantize -m "$m" -o "$out" --group-size 32 --calib "$tokens" --progress none "$@"; }
succeed() {
    job "$@" >/dev/null 2>"$tmp/stderr" || { cat "$tmp/stderr" >&2; fail "quantize $*"; }
    "$qalib" verify "$out" >/dev/null || fail "verify after quantize $*"
    # every module, to be counted
    json "$out/report.json" '__import__("json").dumps([m for l in j["layers"] for m in l])' >"$tmp/modules.json"
}
q=model.layers.0.self_attn.q_proj

# N3: in the first, a middle and the last tensor; the line names it and the place.
for tensor in model.embed_tokens.weight model.layers.1.mlp.up_proj.weight lm_head.weight; do
    for value in nan inf -inf; do
        model
        edit $tensor 70 $value # row 1, column 6: 64 columns
        expect 65 "\"$tensor\"" job
        [ ! -e "$out/model.safetensors" ] || fail "an output with $value"
        expect 65 "$tensor" "$qalib" eval -m "$m" --tokens "$tokens" --progress none
        expect 65 "$tensor" "$qalib" inspect --check-finite "$m"
    done
done
model # a whole subnormal row, next to ordinary ones; and all rows
edit $q.weight 0: 1e-40
succeed
model
edit model.layers.1.mlp.up_proj.weight 5 3.3e38
expect 65 up_proj job

# N4: one token whose activations overflow in block 1: its sample is skipped where that is at most 1 % of them.
overflow() {
    edit model.embed_tokens.weight all 0.25
    for row in $(seq 0 94); do places+=("$((64 * row))" 0); done
    edit model.embed_tokens.weight "${places[@]}" "$((64 * 95))" 100
    edit model.layers.0.self_attn.o_proj.weight 0: 0
    edit model.layers.0.mlp.down_proj.weight 0: 0
    edit model.layers.1.input_layernorm.weight 0 3e38
}
places=()
model --rows 128 --seqlen 16 --last-in 57
overflow
job --format dense >/dev/null 2>"$tmp/stderr" || { cat "$tmp/stderr" >&2; fail "one bad sample of 128"; }
grep -qF "layer 1, attn_in: activations of sample 57 are not finite; the sample is skipped" "$tmp/stderr" || { cat "$tmp/stderr" >&2; fail "the skipped sample is not named"; }
holds "$out/report.json" 'j["samples_skipped"] == 1'
# Such statistics are nobody else's: who found the sample must not show in a report.
rm -rf "$out" "$out.work"
job --statistics fp --cache "$tmp/cache" >/dev/null 2>"$tmp/stderr" || { cat "$tmp/stderr" >&2; fail "one bad sample of 128, with a cache"; }
grep -qF "not kept: 1 samples were left out" "$tmp/stderr" || { cat "$tmp/stderr" >&2; fail "statistics without a sample are kept"; }
holds "$out/report.json" 'j["samples_skipped"] == 1'
[ -z "$(ls "$tmp/cache")" ] || fail "a store without a sample"
model --rows 32 --seqlen 16 --last-in 3
places=()
overflow
expect 65 "activations of sample 3 are not finite" job

# N5, N8: weights of 1e5 and 1e6: an error that names the module, or an output whose every value is finite; never infinity in FP16.
for value in 1e5 1e6 3e30; do
    for tensor in $q model.layers.1.mlp.down_proj; do
        model
        edit $tensor.weight 3 $value
        code=0
        job >/dev/null 2>"$tmp/stderr" || code=$?
        case $code in
        0) "$qalib" verify "$out" >/dev/null || fail "an output that cannot be right from a weight of $value" ;;
        65) grep -qF "$tensor" "$tmp/stderr" || fail "a weight of $value: the module is not named" ;;
        *) cat "$tmp/stderr" >&2; fail "exit code $code for a weight of $value" ;;
        esac
    done
done

# N7: groups of equal values and of zeros are exact.
model
for row in 0 1 2 3; do edit $q.weight $row: 0; done
for row in 4 5 6 7; do edit $q.weight $row: 0.5; done
succeed --method rtn --asym
holds "$tmp/modules.json" 'all(m["loss"] is None or m["loss"] >= 0 for m in j)'

# N7: shapes that no file holds stay in 16 bits with the modules fused with them: listed, and one warning.
model --intermediate 100
job >/dev/null 2>"$tmp/stderr" || { cat "$tmp/stderr" >&2; fail "an intermediate size of 100"; }
[ "$(grep -c 'warning.*16 bits' "$tmp/stderr")" -eq 1 ] || { cat "$tmp/stderr" >&2; fail "one warning for kept modules"; }
holds "$out/report.json" 'sorted(set(m["name"].split(".")[-1] for l in j["layers"] for m in l if m["bits"] == 16)) == ["down_proj", "gate_proj", "up_proj"]'
holds "$out/config.json" 'all(w in str(j["quantization_config"]) for w in ("gate", "up_proj", "down_proj"))'
"$qalib" verify "$out" >/dev/null || fail "verify of a partly quantized model"

# N1, N2: dead columns by a norm of zero, rank-1 and duplicate inputs: the job succeeds and reports what it did.
# dead SHARE: that many of the 64 inputs of q, k, v in both blocks are 0.
dead() {
    model
    for layer in 0 1; do
        places=()
        for ((i = 0; i < $1; i++)); do places+=($i 0); done
        [ ${#places[@]} -eq 0 ] || edit model.layers.$layer.input_layernorm.weight "${places[@]}"
    done
    succeed
    holds "$tmp/modules.json" "all(m['dead_columns'] == $1 for m in j if m['name'].endswith(('q_proj', 'k_proj', 'v_proj')))"
    holds "$tmp/modules.json" 'all(m["fallback"] is None or m["method"] == "rtn" for m in j)'
}
dead 0
dead 1
dead 32
dead 64
model --rows 1 --seqlen 2 # fewer rows than columns
succeed
model # every token alike: H of rank 1, all columns duplicates of one
edit model.embed_tokens.weight all 0.25
succeed
holds "$tmp/modules.json" 'all(m["damp"] > 0 or m["fallback"] for m in j)'

# N9: the same bytes again, with one thread and two.
model
succeed --threads 1
mv "$out" "$tmp/first"
rm -rf "$out.work"
succeed --threads 2
same_files "$tmp/first" "$out"
echo "numerics: refused by name, or survived and reported"
