#!/usr/bin/env bash
# Row S3 of tests/FAULTS.md: a real slurmctld, slurmd and munged on this host run what qalib sbatch submits; the job is signalled,
# cancelled and loses its node, and ends with the bytes of an undisturbed one.  Part of scripts/test.sh --full.
#   apt-get install slurmctld slurmd slurm-client munge
PATH=$PATH:/usr/sbin
for program in slurmctld slurmd munged sbatch; do
    command -v $program >/dev/null || { echo "skip: Slurm: $program is not installed"; exit 0; }
done
[ "$(id -u)" -eq 0 ] || { echo "skip: Slurm: its daemons need root"; exit 0; }
source "$(dirname "${BASH_SOURCE[0]}")/e2e_lib.sh"
pids=()
id=
stop() {
    if [ -n "$id" ] && scancel "$id" 2>/dev/null; then
        for ((i = 0; i < 100; i++)); do gone && break || sleep 0.1; done
    fi
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do kill "${pids[i]}" 2>/dev/null && wait "${pids[i]}" 2>/dev/null; done
    cd / && rm -rf "$tmp"
}
trap stop EXIT
name=$(hostname -s)
port=$((20000 + RANDOM % 20000))
export SLURM_CONF=$tmp/slurm.conf
chmod 755 "$tmp"
mkdir "$tmp/state" "$tmp/spool"

# await SECONDS COMMAND...: until it succeeds.
await() {
    local end=$((SECONDS + $1))
    shift
    until "$@" 2>/dev/null; do
        [ $SECONDS -lt $end ] || { tail -n 20 "$tmp"/*.log >&2; fail "in vain: $*"; }
        sleep 0.2
    done
}

head -c 1024 /dev/urandom >"$tmp/munge.key"
chmod 400 "$tmp/munge.key"
munged --foreground --force --key-file="$tmp/munge.key" --socket="$tmp/munge.socket" --pid-file="$tmp/munge.pid" \
    --seed-file="$tmp/munge.seed" --log-file="$tmp/munge.log" 2>/dev/null &
pids+=($!)
cat >"$SLURM_CONF" <<CONF
ClusterName=qalib
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$tmp/munge.socket
CredType=cred/munge
SlurmctldPort=$port
SlurmdPort=$((port + 1))
StateSaveLocation=$tmp/state
SlurmdSpoolDir=$tmp/spool
SlurmctldPidFile=$tmp/slurmctld.pid
SlurmdPidFile=$tmp/slurmd.pid
SlurmctldLogFile=$tmp/slurmctld.log
SlurmdLogFile=$tmp/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/linear
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
NodeName=$name NodeAddr=127.0.0.1 CPUs=$(($(nproc) > 2 ? $(nproc) : 2)) State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=all Nodes=$name Default=YES MaxTime=INFINITE State=UP
PartitionName=urgent Nodes=$name PriorityTier=10 State=UP
CONF
await 20 test -S "$tmp/munge.socket"
slurmctld -D >/dev/null 2>&1 &
pids+=($!)
slurmd -D -N "$name" >/dev/null 2>&1 &
pids+=($!)
idle() { [ "$(sinfo -h -o %t)" = idle ]; }
await 60 idle

"$build/make_model" "$tmp/model" --layers 16 --hidden 256 --intermediate 512 --tokens "$tmp/tokens.h5" --rows 96 --seqlen 64
job=(-m "$tmp/model" --method gptq --bits 4 --group-size 64 --calib "$tmp/tokens.h5" --device cpu --threads 1)
"$qalib" quantize "${job[@]}" -o "$tmp/whole" -q >/dev/null

field() { scontrol -o show job "$id" | tr ' ' '\n' | sed -n "s/^$1=//p"; }
committed() { cat "$out.work/journal.jsonl" 2>/dev/null | wc -l; }
further() { [ "$(committed)" -gt "$1" ]; } # than so many lines
is() { [ "$(field JobState)" = "$1" ]; }
restarted() { [ "$(field Restarts)" = "$1" ] && is PENDING; }
gone() { ! compgen -G "$tmp/spool/*_$id.*" >/dev/null; } # what ran on the lost node, which a second copy must not meet
now() { scontrol update JobId="$id" StartTime=now+2; } # a requeued job waits two minutes; within a second of its kill it would not be let in
cd "$tmp"
submit() { id=$("$qalib" sbatch "${job[@]}" -o "$out" --time 00:20:00 "$@" --submit); }

# Two signals, each after a finished layer; then the node is lost, which Slurm answers by itself.
out="$tmp/signalled it's"
submit
for restart in 1 2; do
    await 60 is RUNNING
    await 120 further "$(committed)"
    scancel --signal=USR1 "$id"
    await 60 restarted $restart
    now
done
await 60 is RUNNING
await 120 further "$(committed)"
scontrol update NodeName="$name" State=DOWN Reason=test
await 60 restarted 3
await 60 gone
scontrol update NodeName="$name" State=RESUME 2>/dev/null || true # it may be back already: its slurmd lives
await 60 idle
now
await 300 is COMPLETED
[ "$(field Restarts)" = 3 ] || fail "restarted $(field Restarts) times"
same_files "$tmp/whole" "$out"

# Cancelled: not requeued; submitted again, it goes on.
out=$tmp/cancelled
submit
await 120 further 1
scancel "$id"
await 60 is CANCELLED
lines=$(committed)
head -n "$lines" "$out.work/journal.jsonl" >"$tmp/lines"
submit
await 300 is COMPLETED
cmp "$tmp/lines" <(head -n "$lines" "$out.work/journal.jsonl") || fail "the second job began anew"
same_files "$tmp/whole" "$out"
# Two ranks, which srun starts through PMIx: signalled, then thrown out by a job of a higher partition, and the bytes of one.
out=$tmp/ranks
submit --ranks-per-node 2
await 60 is RUNNING
await 120 further "$(committed)"
scancel --signal=USR1 "$id"
await 60 restarted 1
now
await 60 is RUNNING
await 120 further "$(committed)"
sbatch --partition=urgent --wait --wrap=true --output=/dev/null >/dev/null
await 60 restarted 2
now
await 300 is COMPLETED
same_files "$tmp/whole" "$out"
echo "slurm: $(slurmctld -V): two signals, a lost node, a cancelled job, two ranks under PMIx, preempted: the same bytes"
