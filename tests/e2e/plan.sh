#!/usr/bin/env bash
# Forecasts for machines that are not here, from a config.json alone; what cannot work is refused with numbers.
source "$(dirname "$0")/../e2e_lib.sh"
cd tests/data/configs
plan() { "$qalib" plan "$@"; }

plan --config llama-2-70b/config.json --gpus 8 --gpu h200 --samples 512 --seqlen 2048 --method gptq --bits 4 --group-size 128 --json >"$tmp/p.json"
holds "$tmp/p.json" 'j["feasible"] and j["gpus"] == 8 and j["nodes"] == 1 and j["rates_source"] == "datasheet"'
holds "$tmp/p.json" 'j["output_bytes"] == 36638572544 and j["hessian_bytes"] == 4093640704'
holds "$tmp/p.json" '36638572544 < j["disk_bytes"] and j["peak_device_bytes"] < 141e9'
holds "$tmp/p.json" '[p["gpus"] for p in j["scaling"]] == [1, 2, 4, 8, 16, 32, 64]'
holds "$tmp/p.json" 'j["scaling"][3]["seconds"] == j["seconds"] and j["scaling"][0]["feasible"]' # with rows in host memory
holds "$tmp/p.json" 'abs(sum(p["seconds"] for p in j["phases"]) / j["seconds"] - 1) < 1e-9'
holds "$tmp/p.json" 'max(p["device_bytes"] for p in j["phases"]) == j["peak_device_bytes"]'
plan --config llama-2-70b/config.json --gpus 8 --gpu h200 --samples 512 >"$tmp/p.txt"
[ "$(grep -c 'disk bandwidth\|compute\|factor on one rank\|does not fit' "$tmp/p.txt")" -ge 7 ] || { cat "$tmp/p.txt"; fail "table of scaling"; }
for name in llama-3-8b llama-3-70b qwen2.5-7b qwen2.5-72b; do
    plan --config $name/config.json --gpus 16 --nodes 2 --gpu h100 --json >"$tmp/p.json"
    holds "$tmp/p.json" 'j["feasible"] and j["nodes"] == 2 and all(p["network_bytes"] > 0 for p in j["phases"] if p["name"] in ("reduce", "exchange"))'
done

big=(--config llama-2-70b/config.json --samples 512 --seqlen 2048)
plan "${big[@]}" --gpu h200 --gpus 1 --json >"$tmp/p.json"
holds "$tmp/p.json" 'j["rows"] == "host between steps" and j["peak_device_bytes"] <= 141e9 and j["peak_host_bytes"] > 512 * 2048 * 28672 * 2'
plan "${big[@]}" --gpu h200 --gpus 1 --max-device-mem 18GB --json >"$tmp/p.json" 2>/dev/null && fail "18 GB are not enough"
holds "$tmp/p.json" 'j["rows"] == "host" and not any(p["feasible"] for p in j["scaling"])'
expect 71 "GB are needed, 18.000 GB are there" plan "${big[@]}" --gpu h200 --max-device-mem 18GB
expect 71 "24.000 GB are there" plan "${big[@]}" --gpu rtx4090 --gpus 8 --literature
expect 71 "host memory: " plan "${big[@]}" --gpu h200 --gpus 8 --max-host-mem 1GB
expect 78 "llama.cpp" plan "${big[@]}" --gpu h200 --gpus 8 --target llama.cpp
expect 64 "do not stand evenly" plan "${big[@]}" --gpus 8 --nodes 3
expect 64 "expected one of h200" plan "${big[@]}" --gpu h300
expect 64 "drop --device cpu" plan "${big[@]}" --gpu h200 --device cpu
expect 64 "one of the two" plan --gpu h200
expect 64 "one of the two" plan -m . "${big[@]}"
expect 66 "none/config.json" plan --config none/config.json
echo "plan: forecasts for eight GPUs, refusals with numbers"
