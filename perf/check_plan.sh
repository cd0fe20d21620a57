#!/usr/bin/env bash
# What plan says a job needs, beside what the job took:  perf/check_plan.sh [BUILD]      (default: build/cpu)
# Memory beyond 15 %, and beyond 10 MB, which small jobs have in odds and ends, is a failure.  With rates measured by qalib bench --rates, also the time, which only a quiet machine can tell: printed.
# Needs the demo model; a model four times as wide is made.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$(cd "${1:-build/cpu}" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

rates=()
if [[ -n ${RATES-} ]]; then rates=(--rates "$RATES"); fi # made with qalib bench --rates FILE
demo=(-m demo/model)
rows=(--calib demo/demo-calib.h5)
wide=(-m "$tmp/wide" --calib "$tmp/wide.h5")
"$bin/make_model" "$tmp/wide" --hidden 1024 --intermediate 2816 --vocab 8000 --layers 2 --tokens "$tmp/wide.h5" --rows 32 --seqlen 256
"$bin/qalib" calibrate "${demo[@]}" "${rows[@]}" -w "$tmp/stats" --quiet >/dev/null

bad=0
compare() { # name, options of quantize and plan
    local name=$1
    shift
    rm -rf "$tmp/out" "$tmp/out.work"
    "$bin/qalib" plan "$@" "${rates[@]}" --device cpu --json >"$tmp/plan.json"
    "$bin/qalib" quantize "$@" -o "$tmp/out" --device cpu --quiet --json >"$tmp/report.json"
    python3 - "$name" "$tmp" <<'PY' || bad=1
import glob, json, os, sys
name, tmp = sys.argv[1:]
plan, report = (json.load(open(f"{tmp}/{file}.json")) for file in ("plan", "report"))
(report,) = report.get("outputs", {"": report}).values()
spent = report["environment"]
ratio = plan["peak_host_bytes"] / spent["peak_host_bytes"]
print(f"{name:22} {plan['peak_host_bytes'] / 1e6:9.1f} {spent['peak_host_bytes'] / 1e6:9.1f} {ratio:6.2f}   "
      f"{plan['seconds']:8.1f} {spent['seconds']:8.1f} {plan['seconds'] / spent['seconds']:6.2f}   {plan['rates_source']}")
small = abs(plan["peak_host_bytes"] - spent["peak_host_bytes"]) <= 10e6
sys.exit(not (small or 0.85 <= ratio <= 1.15) or plan["output_bytes"] != report["output_bytes"])
PY
}

printf '%-22s %9s %9s %6s   %8s %8s %6s\n' job 'plan MB' measured ratio 'plan s' measured ratio
compare 'default' "${demo[@]}" "${rows[@]}"
compare 'literature' "${demo[@]}" "${rows[@]}" --literature
compare 'no drift, no refining' "${demo[@]}" "${rows[@]}" --drift 0 --refine 0
compare 'statistics fp' "${demo[@]}" "${rows[@]}" --statistics fp
compare 'from a store' "${demo[@]}" --stats "$tmp/stats"
compare 'nearest, no data' "${demo[@]}" --method rtn
compare 'awq' "${demo[@]}" "${rows[@]}" --scheme W4A16-AWQ
compare 'int8, smoothed' "${demo[@]}" "${rows[@]}" --scheme W8A8-INT8
compare 'int8, static inputs' "${demo[@]}" "${rows[@]}" --scheme W8A8-INT8-static
compare 'fp8' "${demo[@]}" "${rows[@]}" --scheme FP8
compare 'gguf' "${demo[@]}" "${rows[@]}" --scheme Q4_K_M
compare 'gguf, no data' "${demo[@]}" --scheme Q4_K_M
compare 'wide model' "${wide[@]}"

# One block of a 70B model, narrower: memory within 10 %; time by rates of the same shape, the median of three of either.
block() { # scale, rows, tokens
    local shape=(--config tests/data/configs/llama-2-70b/config.json --scale "$1" --samples "$2" --seqlen "$3" --device cpu)
    "$bin/qalib" bench --rates "$tmp/rates.json" "${shape[@]}" --quiet >/dev/null
    for i in 1 2 3; do "$bin/qalib" bench block "${shape[@]}" --rates "$tmp/rates.json" --quiet --json >"$tmp/block$i.json"; done
    python3 - "70B / $1, $2 x $3" "$tmp" <<'PY' || bad=1
import json, statistics, sys
name, tmp = sys.argv[1:]
runs = [json.load(open(f"{tmp}/block{i}.json")) for i in (1, 2, 3)]
forecast, spent = runs[0]["forecast"], statistics.median(r["seconds"] for r in runs)
peak = statistics.median(r["peak_host_bytes"] for r in runs)
ratio = forecast["peak_host_bytes"] / peak
print(f"{name:22} {forecast['peak_host_bytes'] / 1e6:9.1f} {peak / 1e6:9.1f} {ratio:6.2f}   "
      f"{forecast['seconds']:8.1f} {spent:8.1f} {forecast['seconds'] / spent:6.2f}   {forecast['rates_source']}")
sys.exit(not 0.9 <= ratio <= 1.1)
PY
}
block 16 2 128
block 8 8 256
[[ $bad -eq 0 ]] || echo "beyond 15 %, or another size of the output" >&2
exit $bad
