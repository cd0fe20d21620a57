#!/usr/bin/env bash
# C1: a job killed at random moments and resumed gives the same bytes; at most one layer is done again.
source "$(dirname "$0")/../e2e_lib.sh"
kills=$([ "${QALIB_TIER:-quick}" = full ] && echo 50 || echo 5)

"$build/make_model" "$tmp/model" --layers 2 --tokens "$tmp/tokens.h5"
job=("$qalib" quantize -m "$tmp/model" --method gptq --bits 4 --group-size 32 --calib "$tmp/tokens.h5" --progress none)
begin=$(date +%s%N)
"${job[@]}" -o "$tmp/whole" >/dev/null
whole_ms=$((($(date +%s%N) - begin) / 1000000))

RANDOM=7
killed=0
for ((i = 0; i < kills; i++)); do
    rm -rf "$tmp/out" "$tmp/out.work"
    "${job[@]}" -o "$tmp/out" --resume >/dev/null 2>&1 &
    pid=$!
    sleep "$(awk "BEGIN {print $((RANDOM % (whole_ms + 1))) / 1000}")"
    kill -KILL $pid 2>/dev/null && killed=$((killed + 1))
    wait $pid 2>/dev/null || true
    before=$(cat "$tmp/out.work/journal.jsonl" 2>/dev/null | grep -c '"layer"' || true)
    "${job[@]}" -o "$tmp/out" --resume >/dev/null 2>"$tmp/stderr" || { cat "$tmp/stderr" >&2; fail "resume after kill $i"; }
    same_files "$tmp/whole" "$tmp/out"
    after=$(grep -c '"layer"' "$tmp/out.work/journal.jsonl")
    [ "$after" -eq 2 ] || fail "a committed layer was made again ($before lines before, $after after)"
done
[ $killed -gt 0 ] || fail "no kill hit a running job"
echo "resume: $killed of $kills kills hit the job, all outputs byte-identical"

# C3: a signal is a clean stop, the code says which, and the job resumes.
for signal in INT TERM USR1; do
    rm -rf "$tmp/out" "$tmp/out.work"
    "${job[@]}" -o "$tmp/out" >/dev/null 2>&1 &
    pid=$!
    until [ -e "$tmp/out.work/lock" ] || ! kill -0 $pid 2>/dev/null; do sleep 0.005; done # its handlers stand from the start of main
    kill -$signal $pid 2>/dev/null || true
    code=0
    wait $pid || code=$?
    case $signal:$code in INT:130 | TERM:143 | USR1:75 | *:0) ;; *) fail "exit code $code after SIG$signal" ;; esac
    [ $code -eq 0 ] || "${job[@]}" -o "$tmp/out" --resume >/dev/null 2>&1 || fail "resume after SIG$signal"
    same_files "$tmp/whole" "$tmp/out"
done

# Killed between the last file of the output and the last line of the journal: complete is complete.
sed -i '$d' "$tmp/out.work/journal.jsonl"
"${job[@]}" -o "$tmp/out" --resume >/dev/null 2>&1 || fail "a complete output without the journal's last line"
same_files "$tmp/whole" "$tmp/out"

# C9: a changed recipe, model or token file is refused, and the line says what differs.
"$build/make_model" "$tmp/other" --layers 2 --rows 17 --tokens "$tmp/other.h5"
expect 78 damp "${job[@]}" --damp 0.1 -o "$tmp/out" --resume
expect 78 tokens "$qalib" quantize -m "$tmp/model" --method gptq --bits 4 --group-size 32 --calib "$tmp/other.h5" -o "$tmp/out" --resume
sed -i 's/"initializer_range": [0-9.]*/"initializer_range": 0.5/' "$tmp/model/config.json"
echo ' ' >>"$tmp/model/config.json"
expect 78 config "${job[@]}" -o "$tmp/out" --resume
echo "resume: signals and changed recipes, tokens and models"
