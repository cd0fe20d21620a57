# Shared by the end-to-end scripts: sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
build=${QALIB_BUILD:-$PWD/build}
qalib=$build/qalib
demo=$PWD/demo
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

fail() { echo "FAILED: $*" >&2; exit 1; }

# expect CODE WORDS COMMAND...: the exit code, and one line on stderr that contains the words.
expect() {
    local code=$1 words=$2 actual=0
    shift 2
    "$@" >"$tmp/stdout" 2>"$tmp/stderr" || actual=$?
    [ "$actual" -eq "$code" ] || { cat "$tmp/stderr" >&2; fail "exit code $actual instead of $code: $*"; }
    grep -qF -- "$words" "$tmp/stderr" || { cat "$tmp/stderr" >&2; fail "stderr does not say \"$words\": $*"; }
}

# json FILE EXPRESSION: evaluates a Python expression over the document `j`; prints the value.
json() { python3 -c 'import json, sys; j = json.load(open(sys.argv[1])); print(eval(sys.argv[2]))' "$1" "$2"; }

# holds FILE EXPRESSION: the expression must be true.
holds() { [ "$(json "$1" "bool($2)")" = True ] || { cat "$1" >&2; fail "does not hold in $1: $2"; }; }

# same_files A B: the same bytes in every file but report.json, which holds times, and report.html, which shows them.
same_files() {
    diff -r --exclude=report.json --exclude=report.html --exclude=SHA256SUMS "$1" "$2" >&2 || fail "$1 and $2 differ"
    diff <(grep -v ' report\.\(json\|html\)$' "$1/SHA256SUMS") <(grep -v ' report\.\(json\|html\)$' "$2/SHA256SUMS") >&2 || fail "SHA256SUMS differ"
}
