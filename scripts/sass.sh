#!/usr/bin/env bash
# What every kernel is made of: registers, bytes of shared and of local memory, and how often which instruction stands in its
# machine code, on sm_80 and sm_90a (where 1024 bytes of shared memory per block are the system's).  Exit 1 if scripts/sass.txt expects something else, 0 without nvcc or cuobjdump (said in one line).
#   scripts/sass.sh [PATTERN]       only kernels that match, for instance 'attention.cu:*'; nothing is checked then
set -euo pipefail
cd "$(dirname "$0")/.."
pattern=${1:-*}

mkdir -p build
scripts/check_cuda.sh >build/sass.log 2>&1 || { cat build/sass.log; exit 1; }
if grep '^cuda: skipped' build/sass.log; then exit 0; fi

# The disassembler: beside the compiler, else from PyPI, where CUDA's own packages carry it.
command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
venv=$PWD/build/sass-venv
if ! command -v cuobjdump >/dev/null; then
    release=$(nvcc --version | sed -n 's/.*release \([0-9]*\).*/\1/p')
    [ -d "$venv/lib" ] ||
        { python3 -m venv "$venv" && "$venv/bin/pip" install -q "nvidia-cuda-cuobjdump>=$release" "nvidia-cuda-nvdisasm>=$release"; } >build/sass.log 2>&1 ||
        rm -rf "$venv"
    PATH=$PATH$(find "$venv" -name cuobjdump -printf ':%h' 2>/dev/null || true)
fi
command -v cuobjdump >/dev/null || { echo "sass: skipped, neither the toolkit nor PyPI has cuobjdump"; exit 0; }

for cubin in build/cubin/*.cubin; do
    name=$(basename "$cubin" .cubin)
    echo "cubin ${name##*.} ${name%.*}"
    cuobjdump -res-usage "$cubin" 2>/dev/null
    cuobjdump -sass "$cubin"
done | c++filt | awk -v wanted="$pattern" -v check=$(($# == 0)) -v expectations=scripts/sass.txt '
function regex(glob) { # a shell pattern as a regular expression
    gsub(/[.+(){}|^$\\\[\]]/, "\\\\&", glob)
    gsub(/\*/, ".*", glob)
    gsub(/\?/, ".", glob)
    return "^" glob
}
function name_of(text) { # demangled, without result, casts and parameters
    sub(/^void /, "", text)
    gsub(/<\([^)]*\)/, "<", text)
    gsub(/, \([^)]*\)/, ", ", text)
    sub(/\(.*/, "", text)
    gsub(/ /, "", text)
    return text
}
function occurrences(key, name,   i, n, count, pattern, list) {
    pattern = regex(name) "(\\.|$)"
    n = split(opcodes[key], list, " ")
    for (i = 1; i <= n; i++) if (list[i] ~ pattern) count += tally[key, list[i]]
    return count + 0
}
function expect(line,   field, n, i, k, key, matched, name, forbidden, count) {
    n = split(line, field, " ")
    for (k = 1; k <= kernels; k++) {
        key = kernel[k]
        if (label[key] !~ regex(field[1]) "$" || (field[2] != "*" && field[2] != arch[key])) continue
        matched = 1
        for (i = 3; i <= n; i++) {
            name = field[i]
            forbidden = sub(/^-/, "", name)
            count = occurrences(key, name)
            if (forbidden ? count : !count) {
                printf "sass: %s %s: %s %s\n", arch[key], label[key], name, forbidden ? "occurs " count " times" : "does not occur"
                bad = 1
            }
        }
    }
    if (!matched) { printf "sass: %s: no kernel matches %s %s\n", expectations, field[1], field[2]; bad = 1 }
}
$1 == "cubin" { machine = $2; file = $3; next }
/^ *Function .*:$/ && !/ : / { sub(/^ *Function /, ""); sub(/:$/, ""); now = machine SUBSEP file SUBSEP name_of($0); next }
/REG:[0-9]+ STACK:/ {
    if (now ~ SUBSEP "$") next
    kernel[++kernels] = now; arch[now] = machine
    split(now, part, SUBSEP); label[now] = file ":" part[3]
    for (i = 1; i <= NF; i++) { split($i, pair, ":"); use[now, pair[1]] = pair[2] }
    next
}
/Function : / { sub(/.*Function : /, ""); now = machine SUBSEP file SUBSEP name_of($0); next }
/^ +\/\*[0-9a-f]+\*\/ +[@A-Z]/ {
    code = $2 ~ /^@/ ? $3 : $2
    if (!((now, code) in tally)) opcodes[now] = opcodes[now] " " code
    tally[now, code]++; total[now]++
}
END {
    shown = split("HGMMA IGMMA QGMMA HMMA IMMA DMMA UTMALDG UTMASTG UBLKCP LDGSTS LDSM STSM SYNCS BAR LDG STG LDS STS LDL STL ATOM ATOMG ATOMS RED FFMA FADD FMUL DFMA I2F I2FP F2F F2FP LOP3 PRMT SHFL MUFU", group, " ")
    for (k = 1; k <= kernels; k++) {
        key = kernel[k]
        if (label[key] !~ regex(wanted) "$") continue
        local = use[key, "LOCAL"] + use[key, "STACK"]
        printf "%-6s %-48s %4d registers %6d shared %s %5d:", arch[key], label[key], use[key, "REG"], use[key, "SHARED"], local ? "LOCAL " local : "0 local", total[key]
        for (i = 1; i <= shown; i++) if (count = occurrences(key, group[i])) printf " %s %d", group[i], count
        print ""
        if (local) bad = 1
    }
    if (check) while ((getline line <expectations) > 0) if (line !~ /^#|^ *$/) expect(line)
    if (!kernels) { print "sass: cuobjdump found no kernel"; bad = 1 }
    if (!bad) printf "sass: %d kernels, %s\n", kernels, check ? "made of what scripts/sass.txt expects" : "expectations not checked"
    exit bad
}'
