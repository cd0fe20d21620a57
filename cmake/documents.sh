#!/bin/sh
# Completion and, where scdoc is, manual pages, laid out as they are installed:  cmake/documents.sh SHARE QALIB [QALIBD]
set -eu
here=$(dirname "$0")
share=$1
qalib=$2
qalibd=${3:-}
rm -rf "$share"
mkdir -p "$share/bash-completion/completions" "$share/zsh/site-functions"
"$qalib" completion bash >"$share/bash-completion/completions/qalib"
"$qalib" completion zsh >"$share/zsh/site-functions/_qalib"
if command -v scdoc >/dev/null; then
    mkdir -p "$share/man/man1" "$share/man/man8"
    "$qalib" manual | scdoc >"$share/man/man1/qalib.1"
    for command in $("$qalib" --help | awk '/^Commands:/ { on = 1; next } /^$/ { on = 0 } on && /^  [a-z]/ { print $1 }'); do
        "$qalib" manual "$command" | scdoc >"$share/man/man1/qalib-$command.1"
    done
    [ -z "$qalibd" ] || "$qalibd" --help | awk -f "$here/qalibd.awk" | scdoc >"$share/man/man8/qalibd.8"
fi
touch "$share/stamp"
