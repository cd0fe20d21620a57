#!/usr/bin/env bash
# The status page in a browser, where there is one.
source "$(dirname "$0")/../e2e_lib.sh"
[ -x "$build/qalibd" ] || { echo "SKIP: built without qalibd (libmicrohttpd or SQLite is missing)"; exit 0; }
QALIB_BUILD=$build tests/page.py
