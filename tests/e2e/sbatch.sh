#!/usr/bin/env bash
# The batch script of qalib sbatch, run by bash with srun, scontrol and sbatch of our own making: row S1 of tests/FAULTS.md.
source "$(dirname "$0")/../e2e_lib.sh"
fake=$tmp/fake
mkdir "$fake"
real=$PATH
PATH=$fake:$PATH

# fake NAME: a program from standard input.
fake() { { echo '#!/bin/bash'; cat; } >"$fake/$1" && chmod +x "$fake/$1"; }

# Paths that a shell would like to read otherwise.
odd="$tmp/a b'c\$HOME\"\`d"$'\n'"e;*"
mkdir "$odd"
"$build/make_model" "$odd/model" --layers 5 --hidden 256 --intermediate 512 --tokens "$odd/tokens.h5" --rows 24 --seqlen 64
out="$odd/-out it's"
common=(--method gptq --bits 4 --group-size 64 --calib "$odd/tokens.h5" --device cpu --threads 1)
"$qalib" quantize -m "$odd/model" -o "$tmp/whole" "${common[@]}" -q >/dev/null
"$qalib" sbatch -m "$odd/model" -o "$out/" "${common[@]}" --time 00:10:00 >"$tmp/job.sh"
bash -n "$tmp/job.sh" || fail "the script is not shell"

# What srun gets is what was typed.
fake srun <<<'printf "%s\0" "$@" >"$ARGS"; exit 0'
export ARGS=$tmp/args SLURM_JOB_ID=7
bash "$tmp/job.sh" || fail "a job that ends well"
python3 - "$tmp/args" "$qalib" "$odd" "$out/" <<'PY' || fail "quoting"
import os, sys
words = open(sys.argv[1]).read().split("\0")[:-1]
program, odd, out = os.path.realpath(sys.argv[2]), sys.argv[3], sys.argv[4]
given = {f"--model={odd}/model", f"--output={out}", f"--calib={odd}/tokens.h5", "--method=gptq", "--bits=4",
         "--group-size=64", "--device=cpu", "--threads=1", "--resume"}
assert words[:3] == ["--cpu-bind=cores", "--wait=120", program] and words[3] == "quantize", words
assert set(words[4:]) == given and len(words[4:]) == len(given), words
PY

# S1: a signal after each finished layer, the job goes back into the queue, the last stay finishes it: the same bytes.
fake srun <<'SRUN'
while [[ $1 == --* ]]; do shift; done
lines() { cat "$JOURNAL" 2>/dev/null | wc -l; }
before=$(lines)
"$@" --quiet >/dev/null &
while kill -0 $! 2>/dev/null && [ "$(lines)" -le "$before" ]; do sleep 0.01; done
kill -USR1 $! 2>/dev/null
wait $!
SRUN
fake scontrol <<<'echo "$@" >>"$REQUEUED"'
export JOURNAL="$out.work/journal.jsonl" REQUEUED=$tmp/requeued
restarts=0
until rc=0; SLURM_RESTART_COUNT=$restarts bash "$tmp/job.sh" 2>"$tmp/stderr" || rc=$?; [ $rc -ne 75 ]; do
    restarts=$((restarts + 1))
    [ "$(sort "$REQUEUED" | uniq -c | tr -s ' ')" = " $restarts requeue 7" ] || fail "requeued $(cat "$REQUEUED")"
    [ $restarts -lt 20 ] || fail "the job does not end"
done
[ $rc -eq 0 ] || { cat "$tmp/stderr" >&2; fail "exit code $rc after $restarts restarts"; }
[ $restarts -ge 2 ] || fail "only $restarts signals arrived in time"
same_files "$tmp/whole" "$out"
[ ! -e "$out.work.stalled" ] || fail "a job that went on left a note that it stalled"

# Three stays without a layer are enough; any other exit code is not worth a second one.
rm "$REQUEUED"
fake srun <<<'exit 75'
ends_with() { # CODE: of the script
    local code=0
    bash "$tmp/job.sh" 2>"$tmp/stderr" || code=$?
    [ $code -eq "$1" ] || fail "exit code $code instead of $1"
}
ends_with 75
ends_with 75
[ ! -s "$tmp/stderr" ] || fail "the second stay already ends it"
ends_with 75
grep -q "no layer was finished" "$tmp/stderr" || fail "no word about the end"
[ "$(wc -l <"$REQUEUED")" -eq 2 ] || fail "a job without progress was requeued $(wc -l <"$REQUEUED") times"
fake srun <<<'exit 65'
ends_with 65
[ "$(wc -l <"$REQUEUED")" -eq 2 ] || fail "damaged input was requeued"

# Many ranks, and the rows named later.
"$qalib" sbatch -m MODEL -o OUT --nodes 2 --gpus-per-node 8 --scheme W4A16-GPTQ-g128 >"$tmp/many.sh" 2>"$tmp/stderr"
grep -q "needs calibration rows" "$tmp/stderr" || fail "a job without rows is not mentioned"
bash -n "$tmp/many.sh"
for line in --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --requeue --signal=USR1@300 --open-mode=append --time=04:00:00; do
    grep -qx -- "#SBATCH $line" "$tmp/many.sh" || fail "no $line"
done
grep -q '^srun --mpi=pmix ' "$tmp/many.sh" || fail "ranks are not started as ranks"
cd "$tmp"
code=0
env -u CALIB bash "$tmp/many.sh" 2>"$tmp/stderr" || code=$?
{ [ $code -ne 0 ] && grep -q "CALIB: is not set" "$tmp/stderr"; } || fail "a job without rows began"
fake srun <<<'printf "%s\n" "$@" >"$ARGS"; exit 0'
CALIB="a b.h5" bash "$tmp/many.sh"
grep -qx -- '--calib=a b.h5' "$ARGS" || fail "CALIB was not passed"

# --submit: the script on sbatch's standard input, its number on ours.
fake sbatch <<<'[ "$*" = --parsable ] && cat >"$ARGS" && echo "4711;cluster"'
[ "$("$qalib" sbatch -m "$odd/model" -o "$out/" "${common[@]}" --time 00:10:00 --submit)" = 4711 ] || fail "number of the job"
cmp "$tmp/job.sh" "$ARGS" || fail "another script was submitted"
fake sbatch <<<'cat >/dev/null; echo "sbatch: error: invalid account" >&2; exit 1'
expect 69 "refused" "$qalib" sbatch -m M -o O --method rtn --submit
rm "$fake/sbatch"
expect 69 "not installed" env PATH="$fake" "$qalib" sbatch -m M -o O --method rtn --submit
PATH=$real
expect 64 "needs data" "$qalib" sbatch -m M -o O --method gptq --submit
expect 64 "letters, digits" "$qalib" sbatch -m M -o O --method rtn --partition 'a b'
expect 64 "a GPU of its own" "$qalib" sbatch -m M -o O --method rtn --gpus-per-node 2 --ranks-per-node 4
expect 64 "sbatch needs --output" "$qalib" sbatch -m M --method rtn
expect 64 "W4A16-GPTQ-g129" "$qalib" sbatch -m M -o O --scheme W4A16-GPTQ-g129
echo "sbatch: $restarts requeues, the same bytes"
