#!/usr/bin/env bash
# The CPU backend on layers of Llama-3-8B, beside what one would call instead: three to four minutes on two quiet cores.
#   perf/cpu_bench.sh [BUILD] >perf/results/cpu-bench.txt        (default: build)
# Calibration takes attention's input whole and a half of the MLP's: its other sizes take minutes each.
set -euo pipefail
cd "$(dirname "$0")/.."
qalib=${1:-build}/qalib

bench() {
    printf '\nqalib bench --device cpu %s\n' "$*"
    "$qalib" bench --device cpu --quiet --peers "$@"
}

changed=$(git status --porcelain --untracked-files=no)
echo "# commit $(git rev-parse --short HEAD)${changed:+ and changes}; $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(nproc) cores, load $(cut -d' ' -f1 /proc/loadavg) before"
bench --op w4a16,int8,fp8 --model llama-3-8b --m 1,16,256
bench --op hessian,factor,gptq --n 4096 --k 4096 --m 2048
bench --op hessian,factor,gptq --n 2048 --k 7168 --m 2048
bench --op attention --model llama-3-8b --m 1024
