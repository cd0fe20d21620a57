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

# Saved activations: a resumed job goes on from them, on any number of ranks, and gives the same bytes; what is damaged is not used.
"$build/make_model" "$tmp/deep" --layers 6 --rows 70 --tokens "$tmp/deep.h5"
job=("$qalib" quantize -m "$tmp/deep" --method gptq --bits 4 --group-size 32 --calib "$tmp/deep.h5" --threads 1 --progress none)
"${job[@]}" -o "$tmp/deep.whole" >/dev/null
lines() { cat "$1.work/journal.jsonl" 2>/dev/null | wc -l; }
saved() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1] + "/rows.json"))["layer"])' "$1.work/rows"; }
"${job[@]}" -o "$tmp/cut" --save-every 0.001 >/dev/null 2>&1 &
pid=$!
until [ "$(lines "$tmp/cut")" -ge 4 ] || ! kill -0 $pid 2>/dev/null; do sleep 0.005; done
kill -KILL $pid 2>/dev/null || true
wait $pid 2>/dev/null || true
[ "$(lines "$tmp/cut")" -lt 7 ] || fail "the job was over before it could be killed"
[ "$(saved "$tmp/cut")" -ge 1 ] || fail "no activations were saved"
resumed() { # NAME COMMAND...: a copy of what was cut off, resumed
    local name=$1
    shift
    rm -rf "$tmp/$name" "$tmp/$name.work"
    cp -r "$tmp/cut.work" "$tmp/$name.work"
    [ ! -e "$tmp/cut" ] || cp -r "$tmp/cut" "$tmp/$name"
    case $name in
    without) rm -r "$tmp/$name.work/rows" ;;
    damaged) printf x | dd of="$(ls "$tmp/$name.work/rows/"*leaf33*)" bs=1 seek=200 conv=notrunc 2>/dev/null ;;
    esac
    "$@" "${job[@]}" -o "$tmp/$name" --resume >/dev/null 2>"$tmp/stderr" || { cat "$tmp/stderr" >&2; fail "resume $name"; }
    same_files "$tmp/deep.whole" "$tmp/$name"
    [ ! -e "$tmp/$name.work/rows" ] || fail "activations of a job that is over are still there"
}
forward() { json "$tmp/$1/report.json" 'next(p["flops"] for p in j["environment"]["phases"] if p["name"] == "forward")'; }
resumed without
resumed with
resumed damaged
grep -q "1 files are damaged or missing" "$tmp/stderr" || fail "nothing was said of damaged activations"
python3 -c 'import sys; a, b, c = map(float, sys.argv[1:]); sys.exit(not (a < b == c))' "$(forward with)" "$(forward without)" "$(forward damaged)" ||
    fail "saved activations spared nothing: $(forward with), $(forward without), $(forward damaged)"
if command -v mpirun >/dev/null && [[ $(ldd "$qalib") == *libmpi* ]]; then
    resumed ranks mpirun --allow-run-as-root --oversubscribe -n 3
fi
echo "resume: from saved activations of layer $(saved "$tmp/cut")"
