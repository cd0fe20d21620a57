#!/usr/bin/env bash
# Rows D1, D2 and M1 of tests/FAULTS.md through the program; needs a build with fault injection, QALIB_BUILD (ctest sets it).
# Every failing call ends in a documented exit code without a crash or leak, and the job then resumes to the same bytes.
source "$(dirname "$0")/e2e_lib.sh"

"$build/make_model" "$tmp/model" --layers 1 --rows 2 --seqlen 16 --tokens "$tmp/tokens.h5"
job=("$qalib" quantize -m "$tmp/model" --method rtn --group-size 32 --progress none --threads 1)
"${job[@]}" -o "$tmp/whole" >/dev/null
steps=$([ "${QALIB_TIER:-quick}" = full ] && echo 1 || echo 4) # a step grows by 1 in `steps` calls

# fails SITE ACTION CODES COMMAND...: n = 1, 2, ... until the program succeeds twice in a row.
fails() {
    local site=$1 action=$2 codes=$3 n code calls=0
    shift 3
    for ((n = 1; n < 20000; n += 1 + (steps - 1) * n / 16)); do
        code=0
        QALIB_FAULT=$site:$n:$action timeout 30 "$@" >/dev/null 2>"$tmp/stderr" || code=$?
        calls=$((calls + 1))
        [ $code -ne 0 ] || break
        [[ " $codes " == *" $code "* ]] || { head -n 40 "$tmp/stderr" >&2; fail "exit code $code with $site:$n:$action: $*"; }
        grep -q '^qalib: error' "$tmp/stderr" || { cat "$tmp/stderr" >&2; fail "no line with $site:$n:$action: $*"; }
    done
    echo "$site:$action: $calls runs of $(basename "$1") ${2:-}"
}

# M1: memory.
for action in once always; do
    fails malloc $action 71 "$qalib" inspect "$tmp/model"
    fails malloc $action 71 "$qalib" plan -m "$tmp/model"
    fails malloc $action 71 "$qalib" verify "$tmp/whole"
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
    same_files "$tmp/whole" "$tmp/out" || return 1
    return $code
}
export -f quantize same_files fail
export tmp qalib
cat >"$tmp/quantize" <<END
#!/usr/bin/env bash
job=(${job[*]})
quantize
END
chmod +x "$tmp/quantize"
fails malloc once 71 "$tmp/quantize"
for site in write allocate fsync rename; do
    fails $site once "73 74" "$tmp/quantize"
done
fails write always "73 74" "$tmp/quantize"
fails read once "65 74" "$tmp/quantize"
fails open once "65 66 73 74" "$tmp/quantize"
echo "faults: documented codes, nothing half written, resumed to the same bytes"
