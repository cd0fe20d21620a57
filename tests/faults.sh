#!/usr/bin/env bash
# Rows D1, D2, D3 and M1 of tests/FAULTS.md through the program; needs a build with fault injection, QALIB_BUILD (ctest sets it).
# Every failing call ends in a documented exit code without a crash or leak, and the job then resumes to the same bytes.
source "$(dirname "$0")/e2e_lib.sh"

"$build/make_model" "$tmp/model" --layers 2 --rows 2 --seqlen 16 --tokens "$tmp/tokens.h5"
job=("$qalib" quantize -m "$tmp/model" --method rtn --group-size 32 --progress none --threads 1)
gptq=("${job[@]/rtn/gptq}" --calib "$tmp/tokens.h5")
"${job[@]}" -o "$tmp/whole.rtn" >/dev/null
"${gptq[@]}" -o "$tmp/whole.gptq" >/dev/null 2>&1
dense=$([ "${QALIB_TIER:-quick}" = full ] && echo 64 || echo 5) # every call up to this one, then steps of n / dense

# fails SITE ACTION CODES COMMAND...: n = 1, 2, ... until the program succeeds twice in a row.
fails() {
    local site=$1 action=$2 codes=$3 n code calls=0 good=0
    shift 3
    for ((n = 1; n < 20000; n += 1 + n / dense)); do
        code=0
        QALIB_FAULT=$site:$n:$action timeout 30 "$@" >/dev/null 2>"$tmp/stderr" || code=$?
        calls=$((calls + 1))
        if [ $code -eq 0 ]; then
            good=$((good + 1))
            [ $good -lt 2 ] || break
            continue
        fi
        good=0
        [[ " $codes " == *" $code "* ]] || { head -n 40 "$tmp/stderr" >&2; fail "exit code $code with $site:$n:$action: $*"; }
        grep -q '^qalib: error' "$tmp/stderr" || { cat "$tmp/stderr" >&2; fail "no line with $site:$n:$action: $*"; }
    done
    echo "$site:$action: $calls runs of $(basename "$1") ${2:-}"
}

# M1: memory.
for action in once always; do
    fails malloc $action 71 "$qalib" inspect "$tmp/model"
    fails malloc $action 71 "$qalib" plan -m "$tmp/model"
    fails malloc $action 71 "$qalib" verify "$tmp/whole.rtn"
done

# D1, D2: each write, allocation of space, fsync and rename; then the same job with --resume.
quantize() {
    local code=0
    rm -rf "$tmp/out" "$tmp/out.work"
    "${job[@]}" -o "$tmp/out" || code=$?
    if [ $code -ne 0 ]; then
        # The marker is the last thing to go: with it, config.json says complete before the program knows that it is on the disk.
        [ ! -e "$tmp/out/config.json" ] || [ -e "$tmp/out/.qalib-incomplete" ] || env -u QALIB_FAULT "$qalib" verify "$tmp/out" >/dev/null || { echo "an incomplete output that would be loaded" >&2; return 1; }
        env -u QALIB_FAULT "${job[@]}" -o "$tmp/out" --resume >/dev/null 2>"$tmp/resume" || { cat "$tmp/resume" >&2; return 1; }
    fi
    same_files "$whole" "$tmp/out" || return 1
    return $code
}
export -f quantize same_files fail
export tmp qalib
script() { printf '#!/usr/bin/env bash\nwhole=%s\njob=(%s)\nquantize\n' "$tmp/whole.$1" "${*:2}" >"$tmp/$1"; chmod +x "$tmp/$1"; }
script rtn "${job[@]}"
script gptq "${gptq[@]}"
fails malloc once 71 "$tmp/rtn"
fails malloc always 71 "$tmp/gptq" # memory that stays out from some moment of the job on
for site in write allocate fsync rename; do
    fails $site once "73 74" "$tmp/rtn"
done
fails write always "73 74" "$tmp/rtn"
fails read once "65 74" "$tmp/rtn"
fails open once "65 66 73 74" "$tmp/rtn"

# The cache of statistics: whatever fails while a store is made or read, the job ends well or with a documented code, and what is left in the
# cache gives the same bytes to it and to the next one.
points=$([ $dense -eq 64 ] && seq 300 || echo 1 8 51 250)
fp=("${gptq[@]}" --statistics fp)
"${fp[@]}" -o "$tmp/whole.fp" >/dev/null 2>&1
# cached SITE ACTION CODES: from an empty cache; from then on with what the earlier faults left.
cached() {
    local n code next
    rm -rf "$tmp/cache"
    for n in $points; do
        rm -rf "$tmp"/{out,next}{,.work}
        code=0
        QALIB_FAULT=$1:$n:$2 timeout 30 "${fp[@]}" --cache "$tmp/cache" -o "$tmp/out" >/dev/null 2>"$tmp/stderr" || code=$?
        [[ " 0 $3 " == *" $code "* ]] || { cat "$tmp/stderr" >&2; fail "exit code $code with $1:$n:$2 and a cache"; }
        for next in out next; do
            "${fp[@]}" --cache "$tmp/cache" -o "$tmp/$next" --resume >/dev/null 2>"$tmp/stderr" || { cat "$tmp/stderr" >&2; fail "behind $1:$n:$2 with a cache"; }
            same_files "$tmp/whole.fp" "$tmp/$next"
        done
        [ $((n % 2)) -eq 1 ] || rm -rf "$tmp/cache"
    done
    echo "$1:$2: $(wc -w <<<"$points") runs with a cache of statistics"
}
cached malloc once 71
cached write once "73 74"
cached fsync kill 137
cached rename kill 137
cached read once "65 74"
cached open once "65 66 73 74"

# D3: the output directory, or the work directory too, vanishes at a call of fsync (the program waits there until it is gone).
# removed N DIRECTORY...: returns 1 when the program makes fewer than N calls.
removed() {
    local n=$1 code=0 state=running
    shift
    rm -rf "$tmp/out" "$tmp/out.work"
    QALIB_FAULT=fsync:$n:stop "${job[@]}" -o "$tmp/out" >/dev/null 2>"$tmp/stderr" &
    local pid=$!
    while [ "$state" != T ] && kill -0 $pid 2>/dev/null; do
        sleep 0.01
        state=$(sed 's/.*) //; s/ .*//' /proc/$pid/stat 2>/dev/null || true)
        [ "$state" != Z ] || break
    done
    rm -rf "$@"
    [ "$state" != T ] || kill -CONT $pid
    wait $pid || code=$?
    [ "$state" = T ] || return 1
    case $code in
    0) ;; # nothing was there yet, or all was done
    73) [ "$(grep -c '^qalib: error' "$tmp/stderr")" -eq 1 ] || { cat "$tmp/stderr" >&2; fail "not one line when $* vanished at fsync $n"; } ;;
    *) cat "$tmp/stderr" >&2; fail "exit code $code when $* vanished at fsync $n" ;;
    esac
    if [ $code -eq 0 ] && [ ! -e "$tmp/out" ] && [ -e "$tmp/out.work" ]; then # gone after it was complete: the job says what to do
        expect 66 "remove $tmp/out.work" "${job[@]}" -o "$tmp/out" --resume
    else
        "${job[@]}" -o "$tmp/out" --resume >/dev/null 2>"$tmp/stderr" || { cat "$tmp/stderr" >&2; fail "no resume after $* vanished at fsync $n"; }
        same_files "$tmp/whole.rtn" "$tmp/out"
    fi
}
for ((n = 1; n < 1000; n += dense > 5 ? 1 : 2)); do removed $n "$tmp/out" || break; done
echo "output directory removed: $n calls of fsync"
for ((n = 1; n < 1000; n += dense > 5 ? 1 : 2)); do removed $n "$tmp/out" "$tmp/out.work" || break; done
echo "work directory too: $n calls of fsync"
echo "faults: documented codes, nothing half written, resumed to the same bytes"
