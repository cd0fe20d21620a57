#!/usr/bin/env bash
# All tests, as continuous integration runs them (two cores: under 30 minutes).  GPU or not: what needs a GPU says why it is skipped.
#   scripts/test.sh            the quick tier
#   scripts/test.sh --full     the counts of the failure tables (kills, loops, fuzzing, other people's readers); updates tests/FULL.md
set -euo pipefail
cd "$(dirname "$0")/.."
export QALIB_TIER=quick
export OMP_WAIT_POLICY=passive # several programs share the cores: a thread that spins takes them from the others
case "${1:-}" in
'') ;;
--full) export QALIB_TIER=full ;;
*) echo "usage: scripts/test.sh [--full]" >&2; exit 64 ;;
esac
command -v nvcc >/dev/null || [ ! -x /usr/local/cuda/bin/nvcc ] || export PATH="$PATH:/usr/local/cuda/bin"

passed=0 failed=0 failures=() verdicts=()
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT

# step NAME COMMAND...: runs it, shows its last lines, and all of its output when it fails.
step() {
    local name=$1 begin=$SECONDS
    shift
    echo "== $name"
    if "$@" >"$logs/log" 2>&1; then
        passed=$((passed + 1))
        verdicts+=("| $name | passed | $((SECONDS - begin)) |")
        grep -E '^(skip|SKIP|layers|headers|format|cuda|sass|[0-9]+% tests passed)' "$logs/log" | sort | uniq -c | sed -E 's/^ +1 /   /; s/^ +([0-9]+) /   (\1 times) /' || true
        echo "   passed in $((SECONDS - begin)) s"
    else
        failed=$((failed + 1))
        verdicts+=("| $name | FAILED | $((SECONDS - begin)) |")
        failures+=("$name")
        tail -n 200 "$logs/log"
        echo "   FAILED after $((SECONDS - begin)) s"
    fi
}

configure_and_build() {
    local preset=$1 launcher=()
    command -v ccache >/dev/null && launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache)
    cmake --preset "$preset" "${launcher[@]}"
    cmake --build "build/$preset"
}

# Emulated kernels of other architectures, minutes under a sanitizer, are for the full tier.
address_sanitizer() {
    local without=()
    [ "$QALIB_TIER" = full ] || without=(--exclude-regex _emulated_sm)
    configure_and_build asan
    ctest --test-dir build/asan --parallel "$(nproc)" --output-on-failure "${without[@]}"
}

thread_sanitizer() {
    configure_and_build tsan
    ctest --test-dir build/tsan --label-regex threads --output-on-failure
}

step "include layers" scripts/check_layers.sh
step "headers compile alone" scripts/check_headers.sh
step "formatting" scripts/check_format.sh
step "build, warnings are errors" scripts/build.sh -DQALIB_WERROR=ON
step "unit tests" ctest --test-dir build --parallel "$(nproc)" --output-on-failure
for script in tests/e2e/*.sh; do
    step "end to end: $(basename "$script" .sh)" "$script"
done
[ "$QALIB_TIER" != full ] || step "Slurm on this host" tests/slurm.sh
step "address and undefined-behaviour sanitizers" address_sanitizer
[ "$QALIB_TIER" != full ] || step "thread sanitizer" thread_sanitizer
step "clang, fuzzing" scripts/fuzz.sh
step "the installed library" tests/consumer/run.sh
[ "$QALIB_TIER" != full ] || step "other people's readers" scripts/interop.sh
step "CUDA files: sm_80, sm_90a, no spills" scripts/check_cuda.sh
step "kernels: the instructions they are made of" scripts/sass.sh

if [ "$QALIB_TIER" = full ]; then
    {
        printf '# The last full run\n\n`scripts/test.sh --full` on %s, commit %s, %s cores.\n\n' "$(date -u +%Y-%m-%d)" \
            "$(git rev-parse HEAD)" "$(nproc)"
        printf '| step | verdict | seconds |\n|---|---|---|\n'
        printf '%s\n' "${verdicts[@]}"
    } >tests/FULL.md
fi
[ $failed -eq 0 ] || printf 'failed: %s\n' "${failures[@]}"
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
