#!/usr/bin/env bash
# qalibd as people use it: the contract, the client, and what happens when workers and daemons die.
source "$(dirname "$0")/../e2e_lib.sh"
[ -x "$build/qalibd" ] || { echo "SKIP: built without qalibd (libmicrohttpd or SQLite is missing)"; exit 0; }
state=$tmp/daemon socket=$tmp/daemon/s
mkdir -m 700 "$state"
trap 'kill -KILL $(jobs -p) 2>/dev/null || true; rm -rf "$tmp"' EXIT

get() { curl -sS --unix-socket "$socket" "http://q$1" "${@:2}"; }
code() { get "$@" -o "$tmp/answer" -w '%{http_code}'; }
# start [OPTIONS]: the daemon, ready.
start() {
    PATH=${daemon_path:-$PATH} "$build/qalibd" --state "$state" --socket "$socket" --retry-base 0.1 --grace 5 "$@" 2>>"$tmp/qalibd.log" &
    daemon=$!
    for ((i = 0; i < 500; i++)); do
        [ "$(code /readyz 2>/dev/null || true)" != 200 ] || return 0
        kill -0 $daemon 2>/dev/null || { cat "$tmp/qalibd.log" >&2; fail "the daemon ended at its start"; }
        sleep 0.02
    done
    fail "the daemon is not ready after 10 s"
}
stop() { kill "-$1" $daemon; wait $daemon 2>/dev/null || true; }
state_of() { get "/v1/jobs/$1" | sed -E 's/.*"state":"([A-Z_]+)".*/\1/'; }
# until_state ID STATE...: waits for one of them.
until_state() {
    for ((i = 0; i < 600; i++)); do
        now=$(state_of "$1")
        [[ " ${*:2} " != *" $now "* ]] || return 0
        [[ $now != FAILED && $now != SUCCEEDED && $now != CANCELLED ]] || break # it will not become anything else
        sleep 0.05
    done
    get "/v1/jobs/$1" >&2
    tail -20 "$tmp/qalibd.log" >&2
    fail "job $1 is $now, not ${*:2}"
}
client() { "$qalib" "$1" --socket "$socket" "${@:2}"; }
worker_of() { json "$state/jobs/$1/attempt-$2/runner.json" 'j["worker"]'; }

# Nothing that the daemon is linked with knows CUDA, HDF5 or linear algebra.
! ldd "$build/qalibd" | grep -iE 'cuda|cublas|cusolver|hdf5|blas|lapack|libgomp' || fail "qalibd is linked with more than it may"

# The unit leaves little open (2.0 of 10), and says nothing that systemd does not know.
if command -v systemd-analyze >/dev/null; then
    mkdir "$tmp/units"
    sed "s#^ExecStart=[^ ]*#ExecStart=$build/qalibd#" "$build/qalibd.service" >"$tmp/units/qalibd.service"
    cp cmake/qalibd.socket "$tmp/units"
    systemd-analyze security --offline=yes --threshold=20 "$tmp/units/qalibd.service" >"$tmp/security" || { cat "$tmp/security"; fail "the unit is too open"; }
    tail -1 "$tmp/security"
    ! systemd-analyze verify --man=no "$tmp/units/qalibd.service" 2>&1 | grep -E 'qalibd\.(service|socket)' || fail "systemd does not understand the unit"
else
    echo "SKIP: units: no systemd-analyze"
fi

# ---- the contract -----------------------------------------------------------------------------------------------------------
"$build/make_model" "$tmp/model" --layers 2 --tokens "$tmp/tokens.h5"
start
scheme=W4A16-GPTQ-g128
"$qalib" quantize -m "$tmp/model" -o "$tmp/plain" --scheme $scheme --calib "$tmp/tokens.h5" --device cpu >/dev/null 2>&1
tests=$PWD/tests
cd "$tmp" # paths of the client are made absolute
"$qalib" submit --socket "$socket" -m model -o ./out/ --scheme $scheme --calib tokens.h5 --wait --json >"$tmp/submit.json" 2>"$tmp/stderr"
holds "$tmp/submit.json" 'j["state"] == "SUCCEEDED" and j["exit_code"] == 0 and j["attempt"] == 1 and j["report"]["outputs"]["W4A16-GPTQ-g128"]["layers"]'
same_files "$tmp/plain/$scheme" "$tmp/out/$scheme"
get /v1/jobs >"$tmp/jobs.json"
holds "$tmp/jobs.json" "len(j['jobs']) == 1 and j['jobs'][0]['output'] == '$tmp/out' and j['next'] is None"
get /metrics >"$tmp/metrics"
grep -qx 'qalib_jobs{state="SUCCEEDED"} 1' "$tmp/metrics" || fail "no metric of the job"
get / | grep -qi '<!doctype html>' || fail "no status page"
first=$(json "$tmp/submit.json" 'j["id"]')
get "/v1/jobs/$first/events" >"$tmp/events.json"
holds "$tmp/events.json" '[e["state"] for e in j["events"] if e["type"] == "state"] == ["QUEUED", "STARTING", "RUNNING", "FINALIZING", "SUCCEEDED"] and any(e["type"] == "progress" for e in j["events"]) and j["over"]'
holds "$tmp/events.json" '[e["layer"] for e in j["events"] if e["type"] == "layer"] == [0, 1] and all(0 < e["relative_error"] < 1 and 0 < e["loss_over_rtn"] <= 1.5 and e["scheme"] == "W4A16-GPTQ-g128" for e in j["events"] if e["type"] == "layer")'
client logs "$first" | grep -q . || fail "no log"
client show "$first" --json >"$tmp/show.json"
holds "$tmp/show.json" 'j["plan"]["peak_host_bytes"] > 0 and j["spec"]["model"].startswith("/")'
# Another bit width starts from the first one's statistics, and is the same bytes.
second=W8A16-GPTQ-g128
"$qalib" quantize -m "$tmp/model" -o "$tmp/plain" --scheme $second --calib "$tmp/tokens.h5" --device cpu >/dev/null 2>&1
client submit -m model -o warm --scheme $second --calib tokens.h5 --wait --json >"$tmp/warm.json" 2>"$tmp/stderr"
warm=$(json "$tmp/warm.json" 'j["id"]')
grep -q '"job":"calibrate"' "$state/jobs/$first/events.jsonl" || fail "the first job collected no statistics"
! grep -q '"job":"calibrate"' "$state/jobs/$warm/events.jsonl" || fail "the second job collected statistics"
client logs "$warm" | grep -q "statistics from the cache: $state/cache/" || fail "the second job made its own statistics"
same_files "$tmp/plain/$second" "$tmp/warm/$second"
python3 "$tests/openapi.py" "$socket" "$first" "$tmp" || fail "the daemon and its document disagree"
echo "daemon: contract"

count() { get "/v1/jobs?limit=1000" | python3 -c 'import json, sys; print(len(json.load(sys.stdin)["jobs"]))'; }
jobs_before=$(count)

# ---- refusals: one line, a code, and nothing queued ---------------------------------------------------------------------------
expect 69 "no daemon listens" "$qalib" jobs --socket "$tmp/nobody"
expect 64 "W9" client submit -m model -o out2 --scheme W9A16-GPTQ
expect 64 "needs data" client submit -m model -o out2 --method gptq
expect 66 "no job" client show 01ARZ3NDEKTSV4RRFFQ69G5FAV
expect 64 "not the id" client show ../../etc/passwd
body() { printf '{"model": "%s", "output": "%s"%s}' "$tmp/model" "$tmp/$1" "$2"; }
refused() { # STATUS CODE BODY
    [ "$(code /v1/jobs -d "$3")" = "$1" ] || { cat "$tmp/answer" >&2; fail "not $1: ${3:0:200}"; }
    holds "$tmp/answer" "j['code'] == '$2' and j['status'] == $1 and '\n' not in j['detail']"
}
refused 400 bad-request '{'
refused 400 bad-request "$(body x ', "modle": 1')"
refused 400 bad-request "$(body x ', "bits": 1e400')"
refused 422 bad-recipe "$(body x ', "recipe": "a: &a [1]\nb: *a\n"')"
refused 422 bad-recipe "$(body x ', "recipe": "version: 1\nbitz: 3\n"')"
# Hostile recipes: the same verdict as from a file, within a second, and nothing of them in the answer but one line.
hostile() { python3 -c 'import json, sys; print(json.dumps({"model": "/m", "output": "/o", "recipe": eval(sys.argv[1])}))' "$1" >"$tmp/body"; }
for recipe in '"version: 1\nbits: " + "[" * 10000' '"version: 1\noverrides:\n" + "".join(" " * (i + 2) + "a:\n" + "" for i in range(900))' \
    '"version: !!python/object 1\n"' '"version: 1\nbits: 4\nbits: 3\n"' '"version: 1\noverrides:\n  - match: \"(\"\n    bits: 4\n"' \
    '"a: &a [" + "x," * 9 + "x]\n" + "".join(f"b{i}: &b{i} [*a,*a,*a]\n" for i in range(9))' '"version: 1\nbits: \u001b[2J\n"'; do
    hostile "$recipe"
    begin=$(date +%s%N)
    refused 422 bad-recipe @"$tmp/body"
    [ $(($(date +%s%N) - begin)) -lt 5000000000 ] || fail "$recipe took more than 5 s"
done
hostile '"version: 1\n#" + "x" * 10000000'
[ "$(code /v1/jobs --data-binary @"$tmp/body")" = 413 ] || fail "a recipe of 10 MB"
[ "$(head -c 1100000 /dev/zero | code /v1/jobs --data-binary @-)" = 413 ] || fail "a body of 1.1 MB"
[ "$(code /v1/nothing)" = 404 ] && [ "$(code /v1/jobs -X PUT)" = 405 ] && [ "$(code '/v1/jobs?limit=0')" = 400 ] || fail "404, 405, 400"
[ "$(code "/v1/jobs/..%2f..%2fetc")" = 404 ] || fail "a path that climbs"
[ "$(count)" = "$jobs_before" ] || fail "something was queued"
# What only the model can say comes from the plan, at once.
printf 'version: 1\nmethod: rtn\nbits: 2\ngroup_size: -2\n' >"$tmp/recipe.yaml"
expect 78 "group" client submit -m model -o out2 --recipe "$tmp/recipe.yaml"
expect 78 "nothing is left" client submit -m model -o out2 --method rtn --bits 3 --format awq --wait
expect 66 "nowhere" client submit -m "$tmp/nowhere" -o out2 --method rtn --wait

# ---- one key, one job ------------------------------------------------------------------------------------------------------------
for ((i = 0; i < 20; i++)); do
    get /v1/jobs -H 'Idempotency-Key: k' -d "$(body keyed ', "method": "rtn", "group_size": 32')" >"$tmp/keyed.$i" &
    posts[i]=$!
done
wait "${posts[@]}"
[ "$(cat "$tmp"/keyed.* | grep -o '"id":"[^"]*"' | sort -u | wc -l)" = 1 ] || fail "one key made several jobs"
[ "$(code /v1/jobs -H 'Idempotency-Key: k' -d "$(body other '')")" = 409 ] || fail "a key with another body"
keyed=$(json "$tmp/keyed.0" 'j["id"]')
until_state "$keyed" SUCCEEDED
[ "$(code "/v1/jobs/$keyed" -X DELETE)" = 204 ] && [ "$(code "/v1/jobs/$keyed")" = 404 ] || fail "a job that is over can be removed"
expect 73 "another daemon" "$build/qalibd" --state "$tmp/second" --socket "$socket" || true
expect 73 "in use" "$build/qalibd" --state "$state" --socket "$tmp/daemon/s2"
mkdir -m 777 "$tmp/open"; chmod 777 "$tmp/open"
expect 77 "others may write" "$build/qalibd" --state "$tmp/second" --socket "$tmp/open/s"
echo "daemon: refusals, keys, sockets"

# ---- deaths ------------------------------------------------------------------------------------------------------------------------
"$build/make_model" "$tmp/slow" --layers 6 --rows 64 --seqlen 128 --tokens "$tmp/slow.h5"
job=(-m "$tmp/slow" --method gptq --bits 4 --group-size 32 --calib "$tmp/slow.h5" --threads 1)
"$qalib" quantize "${job[@]}" -o "$tmp/whole" --device cpu >/dev/null 2>&1
submit() { client submit "${job[@]}" -o "$tmp/$1" "${@:2}"; }
# until_layer ID [ATTEMPT [LAYERS]]: so many layers are finished (1), and the worker stands still, however fast it is; $worker is it.
until_layer() {
    local id=$1 attempt=${2:-1} layers=${3:-1}
    for ((i = 0; i < 1000; i++)); do
        if worker=$(worker_of "$id" "$attempt" 2>/dev/null); then break; fi
        sleep 0.01
    done
    for ((i = 0; i < 1000; i++)); do
        kill -STOP "$worker" || fail "the worker of job $id is gone too early"
        [ "$layers" -gt 0 ] && ! grep -q "\"done\":$layers," "$state/jobs/$id/events.jsonl" || return 0
        kill -CONT "$worker"
        sleep 0.03
    done
    fail "no layer of job $id"
}
go_on() { kill -CONT "$worker"; }

# A worker is killed: resumed, the same bytes.
id=$(submit killed)
until_layer "$id"
kill -KILL "$worker"
until_state "$id" SUCCEEDED
[ "$(get "/v1/jobs/$id" | python3 -c 'import json, sys; print(json.load(sys.stdin)["attempt"])')" = 2 ] || fail "not two attempts"
same_files "$tmp/whole" "$tmp/killed"

# The daemon is killed: its worker goes on, and the next daemon takes it over.
id=$(submit adopted)
until_layer "$id"
stop KILL
go_on || fail "the worker died with its daemon"
start
until_state "$id" SUCCEEDED
[ ! -e "$state/jobs/$id/attempt-2" ] || fail "a living worker was started again"
same_files "$tmp/whole" "$tmp/adopted"

# Daemon, runner and worker are killed, as when the machine goes down.
id=$(submit machine)
until_layer "$id"
stop KILL
kill -KILL "$(json "$state/jobs/$id/attempt-1/runner.json" 'j["pid"]')"
start --rebuild
until_state "$id" SUCCEEDED
same_files "$tmp/whole" "$tmp/machine"

# The daemon is told to stop: the worker finishes its layer, the next daemon goes on.
id=$(submit stopped)
until_layer "$id"
kill -TERM $daemon
sleep 0.5 # until it has told the worker, which stands still
go_on
wait $daemon || true
[ "$(json "$state/jobs/$id/job.json" 'j["state"]')" = INTERRUPTED ] || fail "not INTERRUPTED after a clean stop"
holds "$state/jobs/$id/attempt-1/exit.json" 'j["exit_code"] == 75'
[ ! -e "$socket" ] || fail "the socket is left behind"
start
until_state "$id" SUCCEEDED
same_files "$tmp/whole" "$tmp/stopped"
echo "daemon: kills of worker, daemon and both, and a clean stop; the same bytes"

# What a worker leaves behind ends in its own code, not in the worker's: both are dead when the runner looks.
mkdir -p "$tmp/run/attempt-1"
"$build/qalibd" --runner "$tmp/run" 1 1000000 5 5 600 22 /bin/sh -c 'sleep 0.8 & sleep 0.4; exit 3' &
runner=$!
sleep 0.2
kill -STOP $runner
sleep 1.5
kill -CONT $runner
wait $runner
holds "$tmp/run/attempt-1/exit.json" 'j["exit_code"] == 3 and j["signal"] == 0'

# ---- pause, cancel, retry ----------------------------------------------------------------------------------------------------------
id=$(submit paused)
behind=$(submit behind --priority 5)
until_layer "$id"
client pause "$id" "$behind" >/dev/null
go_on
until_state "$id" PAUSED
until_state "$behind" PAUSED
client cancel "$behind" >/dev/null
client cancel "$behind" >/dev/null
until_state "$behind" CANCELLED
client resume "$id" >/dev/null
until_layer "$id" 2 0
client cancel "$id" >/dev/null
go_on
until_state "$id" CANCELLED
! kill -0 "$worker" 2>/dev/null || fail "the worker outlived its job"
expect 73 "not paused" client resume "$id"
client retry "$id" >/dev/null
until_state "$id" SUCCEEDED
same_files "$tmp/whole" "$tmp/paused"
client rm "$id" "$behind" >/dev/null
# A worker that stands still is killed and resumed.
stop TERM
start --hang-timeout 1
id=$(submit hung)
until_layer "$id"
until_state "$id" SUCCEEDED
holds "$state/jobs/$id/attempt-1/exit.json" 'j["hung"]'
same_files "$tmp/whole" "$tmp/hung"
stop TERM
echo "daemon: pause, cancel, retry, remove, a worker that hangs"

# ---- ranks ---------------------------------------------------------------------------------------------------------------------------
daemon_path=/nowhere start
expect 69 "ranks need mpirun" client submit -m model -o out2 --method rtn --ranks 2
stop TERM
# until_ranks ID ATTEMPT LAYERS: so many layers are finished, and the ranks stand still; $ranks are they.
until_ranks() {
    for ((i = 0; i < 2000; i++)); do
        worker=$(worker_of "$1" "$2" 2>/dev/null) && ranks=$(pgrep -P "$worker" qalib) && [ "$(wc -w <<<"$ranks")" = 2 ] || { sleep 0.01; continue; }
        kill -STOP $ranks || fail "the ranks of job $1 are gone too early"
        [ "$3" -gt 0 ] && ! grep -q "\"layer\":$(($3 - 1))" "$tmp"/ranks-*.work/journal.jsonl 2>/dev/null || return 0
        kill -CONT $ranks
        sleep 0.02
    done
    fail "no layer of job $1 on two ranks"
}
none_left() { # once the job is over, nobody of it lives
    for ((i = 0; i < 100; i++)); do kill -0 $ranks 2>/dev/null || return 0; sleep 0.05; done
    fail "ranks outlived their job: $ranks"
}
if command -v mpirun >/dev/null && [[ $(ldd "$qalib") == *libmpi* ]]; then
    start --hang-timeout 600
    id=$(submit ranks-killed --ranks 2 --comm-timeout 20)
    until_ranks "$id" 1 1
    set -- $ranks
    kill -KILL "$2"
    kill -CONT "$1"
    until_state "$id" SUCCEEDED
    same_files "$tmp/whole" "$tmp/ranks-killed"
    holds "$state/jobs/$id/attempt-1/exit.json" 'j["signal"] == 9 or j["exit_code"] in (69, 70, 75)'
    rm -r "$tmp/ranks-killed.work"
    # mpirun dies: its ranks go with it.
    id=$(submit ranks-headless --ranks 2 --comm-timeout 20)
    until_ranks "$id" 1 1
    kill -KILL "$worker"
    none_left
    until_state "$id" SUCCEEDED
    same_files "$tmp/whole" "$tmp/ranks-headless"
    rm -r "$tmp/ranks-headless.work"
    # Pause, resume, cancel, retry on all of them.
    id=$(submit ranks-paused --ranks 2 --comm-timeout 20)
    until_ranks "$id" 1 1
    client pause "$id" >/dev/null
    sleep 0.3
    kill -CONT $ranks
    until_state "$id" PAUSED
    holds "$state/jobs/$id/attempt-1/exit.json" 'j["exit_code"] == 75'
    none_left
    client resume "$id" >/dev/null
    until_ranks "$id" 2 0
    client cancel "$id" >/dev/null
    kill -CONT $ranks
    until_state "$id" CANCELLED
    none_left
    client retry "$id" >/dev/null
    until_state "$id" SUCCEEDED
    same_files "$tmp/whole" "$tmp/ranks-paused"
    rm -r "$tmp/ranks-paused.work"
    # Daemon and runner are killed: the next daemon finds the ranks, ends them, and goes on.
    id=$(submit ranks-machine --ranks 2 --comm-timeout 20)
    until_ranks "$id" 1 1
    stop KILL
    kill -KILL "$(json "$state/jobs/$id/attempt-1/runner.json" 'j["pid"]')"
    start
    none_left
    until_state "$id" SUCCEEDED
    same_files "$tmp/whole" "$tmp/ranks-machine"
    rm -r "$tmp/ranks-machine.work"
    stop TERM
    # All of them stand still, and mpirun waits for them.
    start --hang-timeout 2
    id=$(submit ranks-hung --ranks 2)
    until_ranks "$id" 1 1
    until_state "$id" SUCCEEDED
    holds "$state/jobs/$id/attempt-1/exit.json" 'j["hung"]'
    none_left
    same_files "$tmp/whole" "$tmp/ranks-hung"
    stop TERM
    echo "daemon: jobs of two ranks"
else
    echo "SKIP: jobs of several ranks: no MPI"
fi

# ---- the daemon is killed again and again under load: 10 times, in the full tier 500 ------------------------------------------------
QALIB_BUILD=$build "$tests/daemon_chaos.py"
# Broken HTTP; other users, links, full disks, limits of memory.
QALIB_BUILD=$build "$tests/daemon_framing.py"
QALIB_BUILD=$build "$tests/daemon_faults.py"
