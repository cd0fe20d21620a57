#!/usr/bin/env bash
# Several ranks under MPI: the bytes of one rank, resume on another number of ranks, and what happens when one is lost.
# The quick tier takes 1, 2 and 4 ranks, the full tier also 3 and 8 and every kind of job.
source "$(dirname "$0")/../e2e_lib.sh"
export OMP_WAIT_POLICY=passive # more threads than processors: nobody spins

if ! command -v mpirun >/dev/null || [[ $(ldd "$qalib") != *libmpi* ]]; then
    echo "skip: MPI was not found: one rank only"
    exit 0
fi

ranks() { # N COMMAND...
    local n=$1
    shift
    mpirun --allow-run-as-root --oversubscribe -n "$n" "$@"
}

"$build/make_model" "$tmp/model" --layers 2 --rows 40 --seqlen 24 --tokens "$tmp/tokens.h5"
counts=(2 4)
[ "${QALIB_TIER:-quick}" != full ] || counts=(2 3 4 8)

# same_for NAME OPTIONS...: one rank with one thread, and then every number of ranks.
same_for() {
    local name=$1 n
    shift
    "$qalib" quantize -m "$tmp/model" -o "$tmp/$name" "$@" --quiet --threads 1 >/dev/null 2>&1
    for n in "${counts[@]}"; do
        ranks "$n" "$qalib" quantize -m "$tmp/model" -o "$tmp/$name-$n" "$@" --quiet --json >"$tmp/$name-$n.json" 2>"$tmp/stderr" ||
            { cat "$tmp/stderr" >&2; fail "$name on $n ranks"; }
        holds "$tmp/$name-$n.json" 'j' # rank 0 alone prints
        if [ -f "$tmp/$name/report.json" ]; then
            same_files "$tmp/$name" "$tmp/$name-$n"
            # What was measured is the same too.
            python3 - "$tmp/$name/report.json" "$tmp/$name-$n/report.json" <<'PY' || fail "$name on $n ranks: other losses"
import json, sys
one, several = (json.load(open(path)) for path in sys.argv[1:])
sys.exit(one["layers"] != several["layers"] or one["job"] != several["job"])
PY
        else
            for scheme in "$tmp/$name"/*/; do same_files "$scheme" "$tmp/$name-$n/$(basename "$scheme")"; done
        fi
    done
}

job=(--method gptq --bits 4 --group-size 32 --sym --calib "$tmp/tokens.h5" --deterministic)
same_for default "${job[@]}"
if [ "${QALIB_TIER:-quick}" = full ]; then
    same_for fp --method gptq --bits 3 --group-size 64 --asym --calib "$tmp/tokens.h5" --statistics fp
    same_for dynamic "${job[@]}" --act-order dynamic
    same_for at-once "${job[@]}" --sequential off
    same_for literature "${job[@]}" --literature --act-order static
    same_for schemes --scheme W4A16-GPTQ-g32,W4A16-AWQ-g32,W8A8-INT8,FP8,NF4 --calib "$tmp/tokens.h5"
fi

# Weights that the ranks of one machine read together: each byte once, the same result.
"$build/make_model" "$tmp/wide" --layers 2 --hidden 256 --intermediate 704 2>/dev/null
"$qalib" quantize -m "$tmp/wide" -o "$tmp/together" --method rtn --bits 4 --group-size 32 --quiet --threads 1 >/dev/null 2>&1
ranks 4 "$qalib" quantize -m "$tmp/wide" -o "$tmp/together-4" --method rtn --bits 4 --group-size 32 >/dev/null 2>"$tmp/stderr" || { cat "$tmp/stderr" >&2; fail "together"; }
! grep -E 'by itself' "$tmp/stderr" >&2 || fail "together: not to the end"
same_files "$tmp/together" "$tmp/together-4"

# A statistics store, whole, and one that another number of ranks goes on with.
"$qalib" calibrate -m "$tmp/model" --calib "$tmp/tokens.h5" -w "$tmp/stats" --threads 1 --quiet >/dev/null 2>&1
for n in "${counts[@]}"; do
    ranks "$n" "$qalib" calibrate -m "$tmp/model" --calib "$tmp/tokens.h5" -w "$tmp/stats-$n" --quiet --json >"$tmp/stats.json" 2>"$tmp/stderr" ||
        { cat "$tmp/stderr" >&2; fail "calibrate on $n ranks"; }
    holds "$tmp/stats.json" 'j["layers"] == 2'
    [ "$(ls "$tmp/stats"/*.h5 | wc -l)" -eq 2 ] || fail "calibrate: no store"
    for file in "$tmp/stats"/*.h5; do cmp "$file" "$tmp/stats-$n/$(basename "$file")" || fail "calibrate on $n ranks"; done
done
rm "$tmp/stats-2/layer-0001.h5"
sed -i '2,$d' "$tmp/stats-2/journal.jsonl"
ranks 4 "$qalib" calibrate -m "$tmp/model" --calib "$tmp/tokens.h5" -w "$tmp/stats-2" --resume --quiet >/dev/null 2>"$tmp/stderr" ||
    { cat "$tmp/stderr" >&2; fail "calibrate: resume on 4 ranks"; }
cmp "$tmp/stats/layer-0001.h5" "$tmp/stats-2/layer-0001.h5" || fail "calibrate: resumed to other bytes"

# One of four ranks is lost behind the first layer.  lose SIGNAL NAME OPTIONS...: leaves mpirun's exit code in $code.
"$build/make_model" "$tmp/long" --layers 10 --rows 40 --seqlen 24 --tokens "$tmp/long.h5" 2>/dev/null
lost=(--method gptq --bits 4 --group-size 32 --sym --calib "$tmp/long.h5" --quiet)
lose() {
    local signal=$1 name=$2 mpi pid victim=
    shift 2
    mpirun --allow-run-as-root --oversubscribe -n 4 "$qalib" quantize -m "$tmp/long" -o "$tmp/$name" "${lost[@]}" "$@" >/dev/null 2>"$tmp/stderr" &
    mpi=$!
    for _ in $(seq 3000); do
        ! grep -qs '"layer":0' "$tmp/$name.work/journal.jsonl" || break
        sleep 0.01
    done
    for pid in $(pgrep -P $mpi); do
        ! tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qx OMPI_COMM_WORLD_RANK=2 || victim=$pid
    done
    [ -n "$victim" ] || fail "$name: the job was over before rank 2 could be lost"
    kill "-$signal" "$victim"
    code=0
    wait $mpi || code=$?
}
resumed() { # NAME RANKS: the bytes of a job that lost nobody
    ranks "$2" "$qalib" quantize -m "$tmp/long" -o "$tmp/$1" "${lost[@]}" --resume >/dev/null 2>"$tmp/stderr" ||
        { cat "$tmp/stderr" >&2; fail "$1: resume on $2 ranks"; }
    same_files "$tmp/whole" "$tmp/$1"
}
"$qalib" quantize -m "$tmp/long" -o "$tmp/whole" "${lost[@]}" --threads 1 >/dev/null 2>&1

# Killed: mpirun ends the others, with its own code for a signal; resumed on another number of ranks.
begin=$SECONDS
lose KILL killed
[ "$code" -ne 0 ] && [ $((SECONDS - begin)) -lt 60 ] || fail "killed: exit code $code after $((SECONDS - begin)) s"
resumed killed 2

# Stopped: the deadline names it, every rank leaves its last steps, exit code 75; resumed on one rank.
lose STOP stopped --comm-timeout 2
[ "$code" -eq 75 ] || { cat "$tmp/stderr" >&2; fail "stopped: exit code $code"; }
grep -qE 'ranks? ([0-9], )*2(, [0-9])* ha(s|ve) been missing for 2 s' "$tmp/stderr" || { cat "$tmp/stderr" >&2; fail "stopped: nobody misses rank 2"; }
holds "$tmp/stopped.work/flight-rank-0.json" 'j["ranks"] == 4 and j["steps"][-1]["done_s"] is None'
resumed stopped 1

# Failures are said once, by rank 0, with the exit code of the one that failed.
expect 66 "missing.h5" ranks 2 "$qalib" quantize -m "$tmp/model" -o "$tmp/none" --calib "$tmp/missing.h5"
[ "$(grep -c 'qalib: error' "$tmp/stderr")" -eq 1 ] || fail "an error for each rank"
[ ! -e "$tmp/none" ] || fail "a failed job left an output"
# Launchers whose messages nobody carries, and contradictions.
expect 69 "torchrun" env RANK=0 WORLD_SIZE=4 "$qalib" quantize -m "$tmp/model" -o "$tmp/none" "${job[@]}"
expect 78 "WORLD_SIZE says 3" env RANK=0 WORLD_SIZE=3 OMPI_COMM_WORLD_SIZE=2 "$qalib" quantize -m "$tmp/model" -o "$tmp/none" "${job[@]}"
echo "ranks: ${counts[*]}"
