#!/usr/bin/env bash
# One block of a 70B model, sixteen times narrower, through the engine; rates of whole jobs, which plan reads.  Nothing is said about speed.
source "$(dirname "$0")/../e2e_lib.sh"
cd tests/data/configs
export TMPDIR=$tmp

"$qalib" bench block --config llama-2-70b/config.json --device cpu --samples 2 --seqlen 128 --scale 16 --json >"$tmp/b.json"
holds "$tmp/b.json" 'j["shape"] == {"hidden": 512, "intermediate": 1792, "heads": 4, "kv_heads": 1, "head_dim": 128}'
holds "$tmp/b.json" '{p["name"] for p in j["phases"]} >= {"read", "forward", "statistics", "factor", "solve", "refine", "pack", "write"}'
holds "$tmp/b.json" 'abs(sum(p["seconds"] for p in j["phases"]) / j["seconds"] - 1) < 1e-9 and j["percent_of_roof"] > 0'
# The Hessians of the four inputs, upper triangles, and what they are apart from the original model: 256 tokens of k^2 + 2 n k each.
holds "$tmp/b.json" 'abs(next(p["flops"] for p in j["phases"] if p["name"] == "statistics") / (256 * (3 * 512**2 + 1792**2 + 4 * 512**2 + 2 * 512**2 + 2 * 512 * 1792)) - 1) < 1e-6'
# Weights of a block in FP32 are there from the first to the last phase; how close the forecast comes is for perf/check_plan.sh.
holds "$tmp/b.json" 'all(p["peak_bytes"] > 4 * (2 * 512 * 512 + 2 * 128 * 512 + 3 * 512 * 1792) for p in j["phases"] if p["name"] != "write")'
holds "$tmp/b.json" '0.7 < j["forecast"]["peak_host_bytes"] / j["peak_host_bytes"] < 1.3'
holds "$tmp/b.json" 'j["projection"]["blocks"] == 80 and j["projection"]["seconds"] > j["seconds"] and j["projection"]["rates_source"] == "measured"'

"$qalib" bench --rates "$tmp/rates.json" --config llama-3-8b/config.json --scale 32 --samples 2 --seqlen 64 --device cpu -q >/dev/null
"$qalib" plan --config llama-3-8b/config.json --rates "$tmp/rates.json" --device cpu --max-host-mem 1TB --json >"$tmp/p.json"
holds "$tmp/p.json" 'j["rates_source"] == "measured"'
"$qalib" bench block --config llama-3-8b/config.json --scale 32 --samples 2 --seqlen 64 --device cpu --rates "$tmp/rates.json" -q >"$tmp/b.txt"
grep -q '^forecast .* by measured rates' "$tmp/b.txt" || { cat "$tmp/b.txt"; fail "rates were not used"; }
[ -z "$(ls -d "$tmp"/qalib-bench-* 2>/dev/null)" ] || fail "files are left behind"

expect 64 "which it does not divide" "$qalib" bench block --config llama-3-8b/config.json --scale 3
expect 64 "needs --config" "$qalib" bench block
expect 64 "expected block" "$qalib" bench blocks
expect 64 "needs --op LIST, or block, or --rates FILE" "$qalib" bench
expect 64 "give it without block" "$qalib" bench --op gemm --rates r.json
expect 64 "takes 8192 tokens" "$qalib" bench block --config llama-3-8b/config.json --scale 32 --samples 1 --seqlen 9000
expect 66 "none.json" "$qalib" bench block --config none.json
echo "block: through the engine, and what plan says of it"
