#!/usr/bin/env bash
# Ranks whose messages go through host/comm_nccl.c, without a GPU: the program with the emulated CUDA backend, under MPI, and a
# libnccl.so.2 made of shared memory (tests/fake_nccl says what that proves and what it cannot).
source "$(dirname "$0")/../e2e_lib.sh"
export OMP_WAIT_POLICY=passive
emulated=$build/qalib_emulated
if [ ! -x "$emulated" ] || [ ! -e "$build/fake_nccl/libnccl.so.2" ]; then
    echo "skip: no C++ compiler, so no emulated CUDA backend"
    exit 0
fi
if ! command -v mpirun >/dev/null || ! ldd "$emulated" | grep -q libmpi; then
    echo "skip: MPI was not found: one rank only"
    exit 0
fi
"$build/make_model" "$tmp/model" --layers 1 --rows 2 --seqlen 16 --tokens "$tmp/tokens.h5"
quantize() { # COMMAND... -- NAME OPTIONS...
    local command=()
    while [ "$1" != -- ]; do command+=("$1") && shift; done
    "${command[@]}" "$emulated" quantize --device cuda:0 -m "$tmp/model" -o "$tmp/$2" --threads 1 --progress none "${@:3}" >/dev/null 2>"$tmp/stderr"
}
ranks() { # N NAME OPTIONS...
    quantize env LD_LIBRARY_PATH="$build/fake_nccl${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" timeout 120 mpirun --allow-run-as-root --oversubscribe -n "$1" -- "${@:2}"
}
said() { cat "$tmp/stderr" >&2; fail "$@"; }
gptq=(--bits 4 --group-size 32 --calib "$tmp/tokens.h5")
rtn=(--method rtn --bits 4 --group-size 32)

# The bytes of one rank.
quantize env -- gptq "${gptq[@]}" || said "one rank"
quantize env -- rtn "${rtn[@]}" || said "one rank"
ranks 2 gptq-2 "${gptq[@]}" || said "GPTQ on two ranks"
! grep -q 'go through MPI' "$tmp/stderr" || said "two ranks: without NCCL"
same_files "$tmp/gptq" "$tmp/gptq-2"
ranks 4 rtn-4 "${rtn[@]}" || said "RTN on four ranks"
! grep -q 'go through MPI' "$tmp/stderr" || said "four ranks: without NCCL"
same_files "$tmp/rtn" "$tmp/rtn-4"

# Two ranks on one GPU, which NCCL refuses: MPI carries all, and says so.
FAKE_NCCL=refuse ranks 2 refused "${rtn[@]}" || said "refused"
grep -q 'go through MPI: rank 0: NCCL: connecting the ranks: invalid usage: Duplicate GPU detected' "$tmp/stderr" || said "refused: nobody says so"
same_files "$tmp/rtn" "$tmp/refused"

# A rank stands still in the middle of a message: the deadline, an abort (without which the others' streams would never end), 75.
code=0
FAKE_NCCL=stall:1 ranks 2 stalled "${rtn[@]}" --comm-timeout 2 || code=$?
[ "$code" -eq 75 ] || said "stalled: exit code $code"
grep -q 'rank 1 has been missing for 2 s' "$tmp/stderr" || said "stalled: nobody misses rank 1"
holds "$tmp/stalled.work/flight-rank-0.json" 'j["transport"] == "NCCL" and j["steps"][-1]["done_s"] is None'
echo "nccl: two and four ranks, refused, stalled"
