#!/usr/bin/env bash
# The commands that people type, on the demo model, one after the other.
source "$(dirname "$0")/../e2e_lib.sh"

"$qalib" calibrate -m "$demo/model" --calib "$demo/demo-calib.h5" -w "$tmp/stats" >/dev/null
[ "$(ls "$tmp"/stats/layer-*.h5 | wc -l)" -eq 6 ] || fail "one statistics file per layer"
"$qalib" quantize -m "$demo/model" -o "$tmp/out" --method gptq --bits 4 --group-size 128 --sym --calib "$demo/demo-calib.h5" >/dev/null
"$qalib" verify "$tmp/out" >/dev/null
"$qalib" eval -m "$tmp/out" --tokens "$demo/demo-eval.h5" --base "$demo/model" --json >"$tmp/eval.json"
holds "$tmp/eval.json" 'all(k in j for k in ("perplexity", "nll", "n_tokens", "protocol", "kld_mean", "kld_median", "kld_p99", "kld_max", "top1_agreement"))'
# The base's perplexity as an independent float32 program found it; 64 rows of 255 scored tokens.
holds "$tmp/eval.json" 'abs(j["base_perplexity"] / 51.58501 - 1) < 1e-3 and j["n_tokens"] == 64 * 255'
holds "$tmp/eval.json" 'abs(2.718281828459045 ** j["nll"] / j["perplexity"] - 1) < 1e-9'
holds "$tmp/eval.json" '0 <= j["kld_median"] <= j["kld_p99"] <= j["kld_max"] and 0.8 < j["top1_agreement"] <= 1'

# Statistics from a store and from a fresh full-precision pass: the same bytes.
"$qalib" quantize -m "$demo/model" -o "$tmp/from-store" --method gptq --bits 3 --group-size 64 --asym --stats "$tmp/stats" >/dev/null
"$qalib" quantize -m "$demo/model" -o "$tmp/fresh" --method gptq --bits 3 --group-size 64 --asym --calib "$demo/demo-calib.h5" --statistics fp >/dev/null
for shard in "$tmp"/fresh/*.safetensors; do cmp "$shard" "$tmp/from-store/$(basename "$shard")" || fail "store and fresh pass differ"; done

# Several schemes in one run, killed by nothing and resumed for nothing: the bytes that each gives alone.
"$build/make_model" "$tmp/model" --layers 2 --rows 8 --seqlen 32 --tokens "$tmp/tokens.h5"
schemes=W4A16-GPTQ-g64,W8A16-RTN-g64,W3A16-GPTQ-g64
"$qalib" quantize -m "$tmp/model" -o "$tmp/list" --scheme $schemes --calib "$tmp/tokens.h5" >/dev/null 2>&1
"$qalib" quantize -m "$tmp/model" -o "$tmp/list" --scheme $schemes --calib "$tmp/tokens.h5" --resume --json >"$tmp/list.json" 2>/dev/null
holds "$tmp/list.json" '{k: v["statistics"] for k, v in j["outputs"].items()} == {"W4A16-GPTQ-g64": "fp", "W8A16-RTN-g64": "fp", "W3A16-GPTQ-g64": "propagated"}'
for scheme in ${schemes//,/ }; do
    "$qalib" quantize -m "$tmp/model" -o "$tmp/alone" --scheme "$scheme" --calib "$tmp/tokens.h5" >/dev/null 2>&1
    same_files "$tmp/list/$scheme" "$tmp/alone/$scheme"
done
expect 64 "given twice" "$qalib" quantize -m "$tmp/model" -o "$tmp/twice" --scheme W4A16-RTN,W4A16-RTN

# A GGUF file from the same store, beside another output, and from the importance that the store gives as a file: the same bytes.
# Importance must pay: 0.00427 nats with it, 0.00459 without.
"$qalib" stats imatrix "$tmp/stats" -o "$tmp/importance" 2>/dev/null
"$qalib" quantize -m "$demo/model" -o "$tmp/gguf" --scheme Q4_K_M,NF4 --stats "$tmp/stats" --json >"$tmp/gguf.json" 2>/dev/null
"$qalib" quantize -m "$demo/model" -o "$tmp/by-file" --scheme Q4_K_M --imatrix "$tmp/importance" >/dev/null 2>&1
"$qalib" quantize -m "$demo/model" -o "$tmp/plain" --scheme Q4_K_M >/dev/null 2>&1
cmp "$tmp/gguf/Q4_K_M/model.gguf" "$tmp/by-file/Q4_K_M/model.gguf" || fail "importance of a store and of a file"
"$qalib" verify "$tmp/gguf/Q4_K_M" --against "$demo/model" >/dev/null
"$qalib" inspect "$tmp/gguf/Q4_K_M" --json >"$tmp/inspect.json"
holds "$tmp/inspect.json" 'j["metadata"]["general.file_type"] == 15 and j["metadata"]["quantize.imatrix.entries_count"] == 42'
for name in gguf plain; do
    "$qalib" eval -m "$tmp/$name/Q4_K_M/model.gguf" --tokens "$demo/demo-eval.h5" --base "$demo/model" --json >"$tmp/$name-eval.json" 2>/dev/null
done
holds "$tmp/gguf-eval.json" "j['kld_mean'] < 0.97 * $(json "$tmp/plain-eval.json" 'j["kld_mean"]')"
"$qalib" generate -m "$tmp/gguf/Q4_K_M" --ids 1,15,27 -n 8 >/dev/null 2>&1 || fail "generate from a GGUF file"
"$qalib" plan -m "$demo/model" --scheme Q4_K_M --stats "$tmp/stats" --target llama.cpp,ollama --json >"$tmp/plan.json" 2>/dev/null
holds "$tmp/plan.json" "j['output_bytes'] == $(json "$tmp/gguf.json" 'j["outputs"]["Q4_K_M"]["output_bytes"]')"
expect 78 "does not read GGUF" "$qalib" plan -m "$demo/model" --scheme Q4_K_M --target vllm

# Once more, with another number of threads: the same bytes.
"$qalib" quantize -m "$demo/model" -o "$tmp/again" --method gptq --bits 4 --group-size 128 --sym --calib "$demo/demo-calib.h5" --threads 1 >/dev/null
same_files "$tmp/out" "$tmp/again"

"$qalib" inspect "$tmp/out" --json >"$tmp/inspect.json"
holds "$tmp/inspect.json" '"gptq" in str(j)'
"$qalib" plan -m "$demo/model" --method gptq --bits 4 --group-size 128 --json >"$tmp/plan.json"
holds "$tmp/plan.json" 'j["feasible"] and all(k in j for k in ("reasons", "output_bytes", "hessian_bytes", "peak_device_bytes", "peak_host_bytes", "disk_bytes", "seconds", "rates_source", "critical_resource", "phases"))'
"$qalib" doctor --json >"$tmp/doctor.json"
holds "$tmp/doctor.json" 'j'

# A finished job: --resume verifies and is content; without it the directory is refused.
"$qalib" quantize -m "$demo/model" -o "$tmp/out" --method gptq --bits 4 --group-size 128 --sym --calib "$demo/demo-calib.h5" --resume >/dev/null
expect 73 "$tmp/out" "$qalib" quantize -m "$demo/model" -o "$tmp/out" --method gptq --bits 4 --group-size 128 --sym --calib "$demo/demo-calib.h5"
echo "contract: all commands"
