#!/usr/bin/env bash
# Who may include whom: the folder is the layer.  Prints every line that breaks the rule; exit 1 if there is one.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A allowed=(
    [host]='host/'
    [host/cpu]='host/((qalib|ops|mem|mat|num|index|grid|hqq|kquant|nf4|rng|status|fault|log|packed|product|tiles|values)|cpu/[a-z0-9_]+)\.h'
    [cuda]='(host/(qalib|ops|mem|mat|num|fragment|index|grid|hqq|kquant|nf4|rng|status|packed|product|schedule|syrk|tiles|values)|cuda/[a-z0-9_]+)\.(h|cuh)'
    [formats]='(host|formats)/'
    [calib]='(host|formats|calib)/'
    [tests]='(host|formats|calib|tests)/|cuda/[a-z0-9_]+\.cuh'
    [perf]='(host|formats|calib|perf)/'
)
bad=0
while IFS=: read -r file line text; do
    include=$(sed -E 's/.*"([^"]+)".*/\1/' <<<"$text")
    layer=${file%%/*}
    [[ $file == host/cpu/* ]] && layer=host/cpu
    if ! [[ $include =~ ^${allowed[$layer]} ]]; then
        echo "$file:$line: $layer may not include \"$include\""
        bad=1
    fi
done < <(grep -rnE '^\s*#\s*include\s+"' host cuda formats calib tests perf --include='*.[ch]' --include='*.cu' --include='*.cuh')
if grep -rlE '\bQL_CUDA\b' host formats calib --include='*.[ch]' | grep -v '^host/ctx.c$'; then
    echo "only host/ctx.c may know whether there is a CUDA backend (QL_CUDA)"
    bad=1
fi
[ $bad -eq 0 ] && echo "layers: in order"
exit $bad
