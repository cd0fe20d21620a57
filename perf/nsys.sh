#!/usr/bin/env bash
# One benchmark under Nsight Systems: kernel time per NVTX range ("qalib/op/shape/plan").
#   perf/nsys.sh OP [OPTIONS OF qalib bench]        for instance  perf/nsys.sh w4a16 --model llama-3-70b --m 1,16
# The report stays in build/nsys-OP.nsys-rep.  Counters of one kernel: ncu --nvtx --nvtx-include 'qalib/OP/' build/qalib bench --iters 3 ...
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -ge 1 ] || { echo "usage: perf/nsys.sh OP [OPTIONS OF qalib bench]" >&2; exit 64; }
op=$1
shift
command -v nsys >/dev/null || { echo "nsys: not found; ncu --nvtx, or qalib bench --iters, do without"; exit 0; }

report=build/nsys-$op
nsys profile --force-overwrite true --trace cuda,nvtx --cuda-graph-trace node --output "$report" \
    build/qalib bench --op "$op" --device cuda --iters 20 "$@"
nsys stats --quiet --force-export true --report nvtx_kern_sum --format table "$report.nsys-rep"
