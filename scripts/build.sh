#!/usr/bin/env bash
# Builds build/qalib and libqalib: with CUDA where nvcc is found, the CPU backend alone elsewhere.
#   scripts/build.sh [CMAKE OPTIONS]       for instance -DQALIB_CUDA=OFF
set -euo pipefail
cd "$(dirname "$0")/.."

options=()
if command -v ccache >/dev/null; then
    options+=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CUDA_COMPILER_LAUNCHER=ccache)
fi
pkg-config --exists cmocka && tests=ON || tests=OFF # said each time: a cached answer would outlive scripts/setup.sh --test
options+=(-DQALIB_TESTS=$tests)
command -v nvcc >/dev/null || [ ! -x /usr/local/cuda/bin/nvcc ] || export PATH="$PATH:/usr/local/cuda/bin"
cmake -S . -B build -G Ninja "${options[@]}" "$@" | grep -E '^-- (CUDA|Build files)|warning|Error' || true
cmake --build build
echo "built: $(build/qalib --version) in build/"
