#!/usr/bin/env bash
# Installs into a temporary prefix; builds and runs the consumer through find_package and through pkg-config; the shared library exports
# nothing but the public names.
set -euo pipefail
cd "$(dirname "$0")/../.."
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

cmake --install build --prefix "$tmp/prefix" >/dev/null
for file in qalib/report.schema.json bash-completion/completions/qalib zsh/site-functions/_qalib $(command -v scdoc >/dev/null && echo man/man1/qalib-quantize.1); do
    [ -s "$tmp/prefix/share/$file" ] || { echo "share/$file is not installed"; exit 1; }
done
cmake -S tests/consumer -B "$tmp/cmake" -DCMAKE_PREFIX_PATH="$tmp/prefix" >/dev/null
cmake --build "$tmp/cmake" >/dev/null
"$tmp/cmake/consumer"

export PKG_CONFIG_PATH=$(dirname "$(find "$tmp/prefix" -name qalib.pc)")
gcc -std=c99 -pedantic -Wall -Werror -o "$tmp/consumer" tests/consumer/consumer.c $(pkg-config --cflags --libs qalib) -lm
LD_LIBRARY_PATH=$(pkg-config --variable=libdir qalib) "$tmp/consumer"

library=$(find "$tmp/prefix" -name 'libqalib.so.0')
readelf -d "$library" | grep -q 'SONAME.*libqalib.so.0' || { echo "SONAME is missing"; exit 1; }
foreign=$(nm -D --defined-only "$library" | awk '{print $3}' | grep -v '^ql_' || true)
[ -z "$foreign" ] || { echo "exported names that are not public: $foreign"; exit 1; }
internal=$(nm -D --defined-only "$library" | awk '{print $3}' | grep -vxF "$(grep -oE '\bql_[a-z0-9_]+\(' host/qalib.h | tr -d '(' | sort -u)" || true)
[ -z "$internal" ] || { echo "exported, but not in host/qalib.h: $internal"; exit 1; }
echo "consumer: find_package and pkg-config"
