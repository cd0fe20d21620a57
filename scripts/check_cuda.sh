#!/usr/bin/env bash
# Every CUDA file compiles for sm_80 and sm_90a without warnings, spills or local memory.  Prints per kernel the registers and the
# shared memory in bytes; exit 1 if a kernel keeps anything in local memory, 0 without nvcc (said in one line).
# What is compiled stays in build/cubin, and is compiled again only after a change; scripts/sass.sh reads it.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v nvcc >/dev/null || [ ! -x /usr/local/cuda/bin/nvcc ] || export PATH="$PATH:/usr/local/cuda/bin"
command -v nvcc >/dev/null || { echo "cuda: skipped, no nvcc"; exit 0; }

out=build/cubin
mkdir -p "$out"
# Leftovers of files that are gone.
for cubin in "$out"/*.cubin; do
    file=cuda/$(basename "$cubin" | sed -E 's/\.sm_[0-9a-z]+\.cubin$//')
    [ -e "$file" ] || rm -f "${cubin%.cubin}".{cubin,log}
done
is_fresh() { # FILE CUBIN: newer than the file, every header, and the flags below
    [ -e "$2" ] && [ -z "$(find "$1" cuda host "$self" \( -path "$1" -o -name '*.h' -o -name '*.cuh' -o -path "$self" \) -newer "$2")" ]
}
compile() { # FILE ARCH DIR: the flags of CMakeLists.txt
    local target=$3/$(basename "$1").$2
    ! is_fresh "$1" "$target.cubin" || return 0
    nvcc -std=c++17 -O2 -DQL_CUDA -D_GNU_SOURCE -I. -fmad=false --expt-relaxed-constexpr -Werror=all-warnings -arch="$2" \
        -Xptxas=-v,-warn-spills -cubin -o "$target.cubin" "$1" >"$target.log" 2>&1 ||
        { cat "$target.log"; rm -f "$target.cubin"; exit 255; } # 255 stops xargs
}
export -f is_fresh compile
export self=scripts/check_cuda.sh
for file in cuda/*.cu; do printf '%s sm_80\n%s sm_90a\n' "$file" "$file"; done |
    xargs -P "$(nproc)" -L 1 bash -c 'compile "$1" "$2" "$0"' "$out"

for arch in sm_80 sm_90a; do
    for log in "$out"/*."$arch".log; do
        file=$(basename "$log" ".$arch.log")
        c++filt <"$log" | awk -v file="$file" -v arch="$arch" '
            /Compiling entry function/ { sub(/^[^\047]*\047/, ""); sub(/\(.*|\047.*/, ""); sub(/^void /, ""); kernel = $0 }
            /bytes stack frame/ { stack = $1; spill = $5 + $9 }
            /Used [0-9]+ registers/ {
                match($0, /[0-9]+ registers/); registers = substr($0, RSTART) + 0
                shared = match($0, /[0-9]+ bytes smem/) ? substr($0, RSTART) + 0 : 0
                note = stack + spill ? "  LOCAL MEMORY: " stack " bytes of stack, " spill " spilled" : ""
                printf "%-8s %-14s %-40s %4d registers %6d shared%s\n", arch, file, kernel, registers, shared, note
            }'
    done
done >"$out/table"
cat "$out/table"
if grep -H 'C75[01][0-9]' "$out"/*.log; then
    echo "cuda: ptxas waits where the kernels above do not, or ignores their registers"
    exit 1
fi
if grep -q 'LOCAL MEMORY' "$out/table"; then
    echo "cuda: kernels above use local memory"
    exit 1
fi
# The calls of NCCL, and the fake ones of the tests, as the real header declares them.
nccl=${QALIB_NCCL_INCLUDE:-$(dirname "$(dirname "$(command -v nvcc)")")/include}
if [ -e "$nccl/nccl.h" ]; then
    for file in host/comm_nccl.c tests/fake_nccl/fake_nccl.c; do
        gcc -std=c17 -D_GNU_SOURCE -DQL_NCCL -I. -isystem "$nccl" -isystem "$(dirname "$(dirname "$(command -v nvcc)")")/include" -Wall -Wextra -Werror -fsyntax-only "$file"
    done
    echo "nccl: both files fit NCCL $(awk '/define NCCL_(MAJOR|MINOR|PATCH)/ { printf "%s%s", dot, $3; dot = "." }' "$nccl/nccl.h")"
else
    echo "nccl: skipped, no nccl.h beside nvcc or in QALIB_NCCL_INCLUDE (a PyPI wheel of nvidia-nccl-cu12 carries one)"
fi
echo "cuda: $(wc -l <"$out/table") kernels for two architectures, no spills, no local memory"
