#!/usr/bin/env bash
# quantize --cache: statistics that jobs leave for each other change nothing but the time, whatever happens to them.
source "$(dirname "$0")/../e2e_lib.sh"
export OMP_WAIT_POLICY=passive # several jobs at one time: nobody spins
cache=$tmp/cache

"$build/make_model" "$tmp/model" --layers 3 --rows 40 --seqlen 24 --tokens "$tmp/tokens.h5" 2>/dev/null
job=(quantize -m "$tmp/model" --calib "$tmp/tokens.h5" --device cpu --progress none)
quantize() { "$qalib" "${job[@]}" "$@" 2>"$tmp/stderr" >/dev/null; }
launch() { "$qalib" "${job[@]}" "$@" 2>/dev/null >/dev/null & pid=$!; }
# NAME OPTIONS...: into $tmp/NAME, with the cache and without.
cached() { quantize -o "$tmp/$1" --cache "$cache" "${@:2}" || { cat "$tmp/stderr" >&2; fail "$*"; }; }
plain() { quantize -o "$tmp/$1" "${@:2}" || { cat "$tmp/stderr" >&2; fail "$*"; }; }
gone() { rm -rf "$tmp/$1" "$tmp/$1.work"; }
same() { # NAME PLAIN
    for output in "$tmp/$2"/*/; do same_files "$output" "$tmp/$1/$(basename "$output")"; done
    gone "$1"
}
hit() { grep -q "statistics from the cache" "$tmp/stderr"; }
stores() { find "$cache" -mindepth 1 -maxdepth 1 -type d ${1:+-name "$1"} | wc -l; }
store() { find "$cache" -mindepth 1 -maxdepth 1 -type d; }

list=W4A16-GPTQ-g32,FP8-KV,FP8-static,W4A16-AWQ-g32
four=(--scheme W4A16-GPTQ-g32)
plain list --scheme $list
plain four "${four[@]}"
plain eight --scheme W8A16-GPTQ-g32

# The first job leaves its statistics, the next ones read them: alone, in a list, another bit width, any number of threads.
cached first "${four[@]}"; same first four
[ "$(stores)" = 1 ] && [ ! -e "$cache"/*.new ] || fail "no store, or half of one"
made=$(stat -c %Y.%i "$cache"/*/layer-0000.h5)
cached second --scheme W8A16-GPTQ-g32 --threads 1; hit || fail "no hit"; same second eight
cached listed --scheme $list; same listed list
[ "$(stat -c %Y.%i "$cache"/*/layer-0000.h5)" = "$made" ] || fail "made again"
# An interrupted job may go on with or without it.
launch -o "$tmp/half" "${four[@]}" --cache "$cache"
until grep -qs '"layer":0' "$tmp/half.work"/*/journal.jsonl || ! kill -0 $pid 2>/dev/null; do sleep 0.005; done
kill -KILL $pid 2>/dev/null || true
wait $pid || true
plain half "${four[@]}" --resume; same half four
# Statistics that follow what is already quantized are nobody else's.
quantize -o "$tmp/own" --bits 4 --group-size 32 --cache "$tmp/none" --statistics propagated
[ ! -e "$tmp/none" ] || fail "propagated statistics in the cache"
echo "cache: the same bytes, alone, in a list, resumed"

# ---- damage, strangers, kills ----------------------------------------------------------------------------------------------------
damaged() { # WHAT
    cached damaged "${four[@]}"
    grep -q "made anew" "$tmp/stderr" || { cat "$tmp/stderr" >&2; fail "$1: not noticed"; }
    same damaged four
    cached healed "${four[@]}"; hit || fail "$1: not healed"; same healed four
}
file=$(store)/layer-0001.h5
for at in 8 $(($(stat -c %s "$file") / 2)) $(($(stat -c %s "$file") - 5)); do
    python3 -c 'import sys; f = open(sys.argv[1], "r+b"); f.seek(int(sys.argv[2])); b = f.read(1)[0]; f.seek(-1, 1); f.write(bytes([b ^ 1]))' "$file" "$at"
    damaged "a flipped bit at $at"
done
truncate -s -100 "$file"; damaged "a file cut short"
rm "$file"; damaged "a file gone"
rm "$(store)/journal.jsonl"; damaged "no journal"
sed -i '$d' "$(store)/journal.jsonl"; damaged "a store that says it is not complete"
ln -s /etc "$cache/link"; mkdir "$cache/left.old"; touch "$cache/file" # what is not ours stays, what was being removed goes
cp -r "$tmp/model" "$tmp/other"
mv "$tmp/model" "$tmp/aside"; mv "$tmp/other" "$tmp/model" # a copy: the same weights, other files
cached copied "${four[@]}"; ! hit || true; same copied four
[ "$(stores)" = 2 ] && [ -L "$cache/link" ] && [ ! -e "$cache/left.old" ] || fail "after a copy: $(ls "$cache")"
# Other weights under the same names, shapes and sizes are another model.
python3 - "$tmp/model/model.safetensors" <<'PY'
import struct, sys
with open(sys.argv[1], "r+b") as f:
    size = struct.unpack("<Q", f.read(8))[0]
    f.seek(8 + size)
    data = bytearray(f.read())
    for i in range(0, len(data) - 1, 2 * 97): data[i] ^= 1
    f.seek(8 + size)
    f.write(data)
PY
plain tuned "${four[@]}"
cached changed "${four[@]}"; same changed tuned
rm -rf "$tmp/model"; mv "$tmp/aside" "$tmp/model"

# Killed while it collects: what is done stays, the next job goes on with it.
rm -rf "$cache"
for ((tries = 0; tries < 20; tries++)); do
    launch -o "$tmp/killed" "${four[@]}" --cache "$cache"
    until compgen -G "$cache/*.new/layer-0000.h5" >/dev/null || ! kill -0 $pid 2>/dev/null; do sleep 0.002; done
    kill -KILL $pid 2>/dev/null || true
    wait $pid || true
    [ "$(stores '*.new')" = 0 ] || break
    gone killed; rm -rf "$cache" # too late: once more
done
[ "$(stores '*.new')" = 1 ] && [ ! -e "$tmp/killed.work" ] || fail "killed: $(ls "$cache")"
cached killed "${four[@]}" --resume; same killed four
[ "$(stores)" = 1 ] && [ "$(stores '*.new')" = 0 ] || fail "after a kill: $(ls "$cache")"
echo "cache: damage, other weights, a kill"

# ---- several at one time, and room ------------------------------------------------------------------------------------------------
rm -rf "$cache"
for i in 1 2 3; do launch -o "$tmp/at-once-$i" "${four[@]}" --cache "$cache" --threads 1; pids[i]=$pid; done
for i in 1 2 3; do wait "${pids[i]}" || fail "at once: job $i"; same "at-once-$i" four; done
[ "$(stores)" = 1 ] || fail "at once: $(ls "$cache")"
bytes=$(du -sB1 "$(store)" | cut -f1)
"$build/make_model" "$tmp/second" --layers 3 --rows 40 --seqlen 24 --tokens "$tmp/second.h5" 2>/dev/null
first=$(store)
mv "$tmp/model" "$tmp/kept"; mv "$tmp/second" "$tmp/model"
# The store in use stays: there is no room for a second one.
exec 9<"$first"
flock -s 9
cached full --scheme W4A16-GPTQ-g32 --cache-limit $((bytes * 3 / 2))
[ -d "$first" ] && [ "$(stores)" = 1 ] || fail "in use: $(ls "$cache")"
grep -q "no room" "$tmp/stderr" || fail "nothing said of the room"
gone full
exec 9<&-
cached fits --scheme W4A16-GPTQ-g32 --cache-limit $((bytes * 3 / 2))
[ ! -e "$first" ] && [ "$(stores)" = 1 ] || fail "the least recently used: $(ls "$cache")"
second=$(store)
gone fits
rm -rf "$tmp/model"; mv "$tmp/kept" "$tmp/model"
cached small "${four[@]}" --cache-limit 1000; same small four
[ "$(store)" = "$second" ] || fail "a limit that nothing fits under took something away"
# A directory that cannot be written, or is none.
quantize -o "$tmp/none" "${four[@]}" --cache /proc/none || fail "/proc/none"; same none four
touch "$tmp/plain-file"; quantize -o "$tmp/none" "${four[@]}" --cache "$tmp/plain-file" || fail "a file"; same none four

# Several ranks make it and read it together.
if command -v mpirun >/dev/null && [[ $(ldd "$qalib") == *libmpi* ]]; then
    rm -rf "$cache"
    ranks() { mpirun --allow-run-as-root --oversubscribe -n 2 "$qalib" "${job[@]}" -o "$tmp/ranks" "${four[@]}" --cache "$cache" >/dev/null 2>"$tmp/stderr"; }
    cached one "${four[@]}"; same one four
    alone=$(store)
    mv "$alone" "$tmp/alone"
    ranks || fail "two ranks"; same ranks four
    for file in "$tmp/alone"/*.h5; do cmp "$file" "$(store)/$(basename "$file")" || fail "two ranks made another store"; done
    [ "$(store)" = "$alone" ] || fail "two ranks made a store of another name"
    ranks || fail "two ranks from the cache"; hit || fail "two ranks did not hit"; same ranks four
fi
echo "cache: several at one time, room, ranks"
