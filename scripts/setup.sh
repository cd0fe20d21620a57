#!/usr/bin/env bash
# Installs what building and testing need, from Debian's packages; prints what it does, does nothing where nothing is missing.
#   scripts/setup.sh          to build and run
#   scripts/setup.sh --test   also what scripts/test.sh uses (clang, sanitizers, formatter, the tokenizers' Python environment)
# CUDA is not installed: where nvcc is found the CUDA backend is built, elsewhere the CPU backend is complete.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(build-essential cmake ninja-build pkg-config libopenblas-dev liblapack-dev libhdf5-dev libjansson-dev libyaml-dev
    libpcre2-dev libssl-dev libmicrohttpd-dev libsqlite3-dev python3 python3-venv)
if [ "${1:-}" = --test ]; then
    packages+=(ccache clang clang-format libclang-rt-14-dev libomp-14-dev libcmocka-dev git curl libopenmpi-dev openmpi-bin
        python3-jsonschema scdoc man-db zsh)
elif [ $# -gt 0 ]; then
    echo "usage: scripts/setup.sh [--test]" >&2
    exit 64
fi

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "setup: all ${#packages[@]} packages are installed"
else
    as_root=()
    [ "$(id -u)" -eq 0 ] || as_root=(sudo)
    echo "setup: installing ${missing[*]}"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
[ "${1:-}" != --test ] || python3 scripts/tokenize.py --setup
echo "setup: done"
