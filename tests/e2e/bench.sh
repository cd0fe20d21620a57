#!/usr/bin/env bash
# Every benchmark runs once and its three forms of output agree; nothing is said about speed.
source "$(dirname "$0")/../e2e_lib.sh"
bench() { "$qalib" bench --device cpu --threads 1 --progress none -q "$@"; }
products=dense,w2a16,w3a16,w4a16,w8a16,w4a8,int8,fp8,fp8_block,gemm,qgemm
calibration=hessian,cross,factor,gptq,solve,refine,literature,loss,range,search,quantize,pack,unpack
forward=attention,attention_cached,rmsnorm,swiglu,abs_hist,nll,kld

# By the protocol: roofs, table, CSV, picture.
bench --op w4a16,quantize --n 64 --k 128 --m 1,3 --peers --csv "$tmp/b.csv" --svg "$tmp/b.svg" --json >"$tmp/b.json"
holds "$tmp/b.json" '[(r["op"], r["m"]) for r in j["results"]] == [("w4a16", 1), ("w4a16", 3), ("quantize", 0)]'
holds "$tmp/b.json" 'j["roofs"]["copy_byte_s"] > 1e6 and j["roofs"]["dense_flop_s"] > 1e6 and j["roofs"]["dense_square"] == 2048'
holds "$tmp/b.json" 'all(0 < r["own"]["p10_s"] <= r["own"]["median_s"] <= r["own"]["p90_s"] for r in j["results"])'
holds "$tmp/b.json" 'all(r["peer_shape"] == [r["m"], 64, 128] and r["speedup"] > 0 for r in j["results"][:2]) and "peer" not in j["results"][2]'
holds "$tmp/b.json" 'j["results"][1]["flop"] == 2 * 3 * 64 * 128'
# The share of the roof is the time that the roofs allow over the one measured.
holds "$tmp/b.json" 'all(abs(max(r["bytes"] / j["roofs"]["copy_byte_s"], r["flop"] / j["roofs"]["dense_flop_s"]) / r["own"]["median_s"] / r["roof"] - 1) < 1e-4 for r in j["results"])'
python3 - "$tmp" <<'PY' || fail "CSV and SVG"
import csv, json, sys, xml.etree.ElementTree as xml
rows = list(csv.DictReader(open(sys.argv[1] + "/b.csv")))
results = json.load(open(sys.argv[1] + "/b.json"))["results"]
assert [r["op"] for r in rows] == [r["op"] for r in results]
assert all(abs(float(c["median_s"]) / r["own"]["median_s"] - 1) < 1e-6 for c, r in zip(rows, results))
picture = xml.parse(sys.argv[1] + "/b.svg").getroot()
name = "{http://www.w3.org/2000/svg}"
assert len(picture.findall(f"{name}circle/{name}title")) == 2, "one mark per result that counts FLOP"
width, height = (float(picture.get(key)) for key in ("width", "height"))
assert all(0 < float(c.get("cx")) < width and 0 < float(c.get("cy")) < height for c in picture.iter(name + "circle"))
PY

# Every operation, as profilers run it; sizes of a model count once where operations see them once.
bench --op $products,$calibration,$forward --model demo --m 40 --iters 2 --json >"$tmp/all.json"
holds "$tmp/all.json" "sorted({r['op'] for r in j['results']}) == sorted('$products,$calibration,$forward'.split(','))"
holds "$tmp/all.json" 'all(r["own"]["calls"] == 2 and r["own"]["repeats"] == 1 and r["bytes"] > 0 for r in j["results"])'
holds "$tmp/all.json" '[r["k"] for r in j["results"] if r["op"] == "factor"] == [256, 768]'
holds "$tmp/all.json" '[(r["n"], r["k"]) for r in j["results"] if r["op"] == "gptq"] == [(512, 256), (256, 256), (1536, 256), (256, 768)]'
bench --op factor,gptq,w4a16 --n 64 --k 256 --m 2 --ordered --bits 3 --group 64 --iters 1 >"$tmp/ordered"
[ "$(grep -c 'ordered\|cpu' "$tmp/ordered")" -ge 3 ] || { cat "$tmp/ordered"; fail "ordered columns"; }
if [ -x "$build/qalib_emulated" ]; then # the same on the CUDA backend's code: no graph can be captured there
    "$build/qalib_emulated" bench --device cuda --op w4a16,gemm,hessian,gptq,attention_cached --n 64 --k 128 --m 2 --peers --iters 1 --json --progress none >"$tmp/cuda.json"
    holds "$tmp/cuda.json" 'len(j["results"]) == 5 and not any(r["own"]["graph"] for r in j["results"])'
    "$build/qalib_emulated" bench --device cuda --op int8 --n 64 --k 128 --m 4 --peers --iters 1 --choices "$tmp/choices" --progress none >/dev/null
    grep -q 'n=64 k=128 m=4 x=BF16' "$tmp/choices" || fail "measured choices"
fi

expect 64 'unknown operation "w4a17"; did you mean w4a16?' bench --op w4a17 --n 64 --k 64
expect 64 'unknown operation ""' bench --op gemm, --n 64 --k 64
expect 64 "gemm needs sizes: --model NAME, or --n and --k" bench --op gemm --n 64
expect 64 "give one or the others" bench --op gemm --model demo --n 64
expect 64 "expected one of llama-2-7b" bench --op gemm --model llama-9
expect 64 "2, 3, 4 or 8" bench --op qgemm --n 64 --k 64 --bits 5
expect 64 "leaves out" bench --op gemm --n 64 --k 64 --iters 1 --svg "$tmp/x.svg"
expect 69 "no case could run" bench --op w4a16 --n 64 --k 100 --m 1 --iters 1
expect 73 "$tmp/none/x.csv" bench --op gemm --n 64 --k 64 --m 1 --iters 1 --csv "$tmp/none/x.csv"
echo "bench: every operation, in three forms"
