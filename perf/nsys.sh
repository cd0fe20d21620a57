#!/usr/bin/env bash
# One benchmark under Nsight Systems: kernel time per NVTX range ("qalib/op/shape/plan").
#   perf/nsys.sh OP [OPTIONS OF qalib bench]        for instance  perf/nsys.sh w4a16 --model llama-3-70b --m 1,16
# A whole job needs no script:  nsys profile --trace cuda,nvtx,osrt build/qalib quantize --device cuda ...  (with ranks: mpirun -n 4 nsys profile
# -o rank-%q{OMPI_COMM_WORLD_RANK} ...).  Its ranges are "block 3" > "model.layers.3.mlp.down_proj" > "solve" and the other phases of report.json;
# what stands directly in a block are the passes of the rows ("forward", "statistics") and the reading ("read"); no phase: none of the GPU's.
# The queue is drained where a phase ends, so a kernel lies under its own range:  nsys stats --report nvtx_gpu_proj_sum,nvtx_kern_sum REPORT
# The report of a benchmark stays in build/nsys-OP.nsys-rep.  Counters of one kernel: ncu --nvtx --nvtx-include 'qalib/OP/' build/qalib bench --iters 3 ...
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
