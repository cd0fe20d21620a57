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
if ! command -v mpirun >/dev/null || [[ $(ldd "$emulated") != *libmpi* ]]; then
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

# NCCL finds in the background that the network is gone: the watchdog asks, and ends the job long before any deadline.
begin=$SECONDS code=0
FAKE_NCCL=break:1 ranks 2 broken "${gptq[@]}" || code=$?
[ "$code" -eq 75 ] && [ $((SECONDS - begin)) -lt 60 ] || said "broken: exit code $code after $((SECONDS - begin)) s"
grep -q 'rank 1 behind step .*NCCL: between two steps: remote error' "$tmp/stderr" || said "broken: nobody says so"

# ---- torchrun's variables, without MPI ------------------------------------------------------------------------------------------
export MASTER_ADDR=127.0.0.1 MASTER_PORT LD_LIBRARY_PATH="$build/fake_nccl${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
MASTER_PORT=$((20000 + $$ % 10000))
# torchrun N RANKS NAME OPTIONS...: starts RANKS (a list) of N; codes in $codes, what they say in stderr.RANK
torchrun() {
    local n=$1 list=$2 name=$3 rank pids=()
    shift 3
    codes=
    for rank in $list; do
        RANK=$rank WORLD_SIZE=$n LOCAL_RANK=$rank LOCAL_WORLD_SIZE=$n timeout -k 1 "${limit:-60}" "$emulated" quantize --device cuda:0 -m "$tmp/model" \
            -o "$tmp/$name" "${rtn[@]}" --threads 1 --progress none "$@" >/dev/null 2>"$tmp/stderr.$rank" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        local code=0
        wait "$pid" 2>/dev/null || code=$?
        codes+=" $code"
    done
    cat "$tmp"/stderr.* >"$tmp/stderr"
}
for n in 2 4; do
    torchrun "$n" "$(seq -s ' ' 0 $((n - 1)))" "torch-$n"
    [ -z "${codes//[ 0]/}" ] || said "torchrun, $n ranks: exit codes$codes"
    same_files "$tmp/rtn" "$tmp/torch-$n"
done

# Somebody else who knocks at rank 0's port before rank 1 does is sent away.
torchrun 2 0 knocked &
for _ in $(seq 500); do
    ! (printf 'GET / HTTP/1.0\r\n\r\n%0100d' 0 >"/dev/tcp/127.0.0.1/$((MASTER_PORT + 1))") 2>/dev/null || break
    sleep 0.02
done
torchrun 2 1 knocked
wait
[ "$codes" = " 0" ] || said "torchrun, a stranger: exit code$codes"
same_files "$tmp/rtn" "$tmp/knocked"

# A rank that never comes; one that hangs in a call of NCCL, which nobody but its own watchdog can end.
torchrun 3 "0 2" late --comm-timeout 2
[ "$codes" = " 75 75" ] && grep -q 'rank 1 has not come to 127.0.0.1 for 2 s' "$tmp/stderr" || said "torchrun: exit codes$codes without rank 1"
FAKE_NCCL=stall:1 torchrun 2 "0 1" stalled-torch --comm-timeout 2
[ "$codes" = " 75 75" ] && grep -q 'rank 1 has been missing for 2 s' "$tmp/stderr" || said "torchrun: exit codes$codes, rank 1 stands still"
grep -q 'rank 1 hangs in step .* for more than 2 s' "$tmp/stderr" || said "torchrun: rank 1 does not say that it hangs"
holds "$tmp/stalled-torch.work/flight-rank-1.json" 'j["transport"] == "NCCL" and j["steps"][-1]["done_s"] is None'

# Nothing carries what is computed without NCCL, or without a GPU.
rm -f "$tmp"/stderr.*
FAKE_NCCL=refuse torchrun 2 "0 1" refused-torch
[ "$codes" = " 69 69" ] && grep -q 'need NCCL.*Duplicate GPU detected' "$tmp/stderr" || said "torchrun, refused: exit codes$codes"
torchrun 2 "0 1" cpu --device cpu
[ "$codes" = " 69 69" ] && grep -q 'need NCCL.*rank 0: no GPU' "$tmp/stderr" || said "torchrun on the processor: exit codes$codes"
echo "nccl: two and four ranks under MPI and torchrun, refused, stalled, missing"
