#!/usr/bin/env bash
# What README.md, --help and the manual pages tell people to type does work.
source "$(dirname "$0")/../e2e_lib.sh"
python3 tests/examples.py "$build" "$tmp"
