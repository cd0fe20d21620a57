#!/usr/bin/env bash
# clang-format 14 leaves every source file as it is.  --fix applies it.
set -euo pipefail
cd "$(dirname "$0")/.."
mapfile -t files < <(git ls-files 'host/*.[ch]' 'cuda/*.cu' 'cuda/*.cuh' 'formats/*.[ch]' 'calib/*.[ch]' 'tests/*.[ch]' 'perf/*.[ch]')
if [ "${1:-}" = --fix ]; then
    clang-format -i "${files[@]}"
else
    clang-format --dry-run --Werror "${files[@]}" && echo "format: clean"
fi
