#!/usr/bin/env bash
# Builds the fuzz targets with clang and runs each for a while, one on every core: 10 s, in the full tier 600 s, or as said.
#   scripts/fuzz.sh [SECONDS] [TARGET...]
# A finding stays in build/fuzz as crash-*, timeout-* or oom-*; add it to tests/fuzz/corpus/TARGET with its fix.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-$([ "${QALIB_TIER:-quick}" = full ] && echo 600 || echo 10)}
shift || true

launcher=()
command -v ccache >/dev/null && launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache)
cmake --preset fuzz "${launcher[@]}" -DQALIB_WERROR=ON >/dev/null
cmake --build build/fuzz
cd build/fuzz
[ $# -gt 0 ] && targets=("$@") || mapfile -t targets < <(ls | sed -n 's/^fuzz_\([a-z_]*\)$/\1/p')
fuzz() {
    local seconds=$1 target=$2
    mkdir -p "found/$target"
    ./fuzz_"$target" -max_total_time="$seconds" -rss_limit_mb=512 -timeout=5 -close_fd_mask=3 -print_final_stats=1 \
        "found/$target" "../../tests/fuzz/corpus/$target" 2>&1 | sed -n "s/^stat::number_of_executed_units: */$target: executions /p"
    [ "${PIPESTATUS[0]}" -eq 0 ] || { echo "$target: finding in $PWD"; return 1; }
}
export -f fuzz
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I '{}' bash -c 'fuzz "$@"' - "$seconds" '{}' # one target a core
