#!/usr/bin/env bash
# Stands in for qalib under qalibd, for the load and chaos scripts: no model, but every run leaves a trace.
#   OUTPUT.lock     held while it runs; a second one at the same time writes to OUTPUT.doubled
#   OUTPUT.done     a line per run that came to its end
# FAKE_SECONDS: how long a job takes (default: 0.05).
command=$1
for word in "$@"; do [[ $word != --output=* ]] || output=${word#--output=}; done
case $command in
doctor) echo '{"devices": [{"name": "cpu"}]}' ;;
plan) echo '{"feasible": true, "peak_host_bytes": 1000, "peak_device_bytes": 0, "disk_bytes": 1000, "seconds": 0.1}' ;;
quantize)
    exec 8>"$output.lock"
    flock -n 8 || echo "$$" >>"$output.doubled"
    trap 'exit 143' TERM
    trap 'exit 75' USR1
    echo '{"event":"progress","job":"quantize","done":0,"steps":2,"phase":"reading","elapsed_s":0,"step_s":0,"left_s":0}' >&2
    sleep "${FAKE_SECONDS:-0.05}" 8>&- &
    wait $!
    echo '{"event":"progress","job":"quantize","done":2,"steps":2,"phase":"end","elapsed_s":0,"step_s":0,"left_s":0}' >&2
    echo "$$" >>"$output.done"
    echo '{"layers": []}'
    ;;
esac
