#!/usr/bin/env bash
# Every header compiles alone; the public one also as C99, C17, C++17 and CUDA.
set -euo pipefail
cd "$(dirname "$0")/.."

flags=(-Wall -Wextra -Werror -D_GNU_SOURCE -I. $(pkg-config --cflags hdf5-serial jansson))
for header in host/*.h host/cpu/*.h formats/*.h calib/*.h calib/*/*.h; do
    echo "#include \"$header\"" | gcc -std=c17 "${flags[@]}" -fsyntax-only -x c - || { echo "$header does not compile alone"; exit 1; }
done
use='#include "host/qalib.h"
int main(void) { return ql_status_exit_code(QL_OK); }'
for standard in c99 c17; do echo "$use" | gcc -std=$standard -pedantic "${flags[@]}" -fsyntax-only -x c -; done
echo "$use" | g++ -std=c++17 -pedantic "${flags[@]}" -fsyntax-only -x c++ -
cuda="CUDA skipped: no nvcc"
if command -v nvcc >/dev/null; then
    file=$(mktemp --suffix=.cu)
    trap 'rm -f "$file"' EXIT
    printf '%s\n' '#include "host/index.h"' '#include "host/rng.h"' "$use" >"$file"
    nvcc -std=c++17 -I. -Werror all-warnings -arch=sm_80 -c -o /dev/null "$file"
    cuda="and CUDA"
fi
echo "headers: compile alone; the public one as C99, C17, C++17 ($cuda)"
