#!/usr/bin/env python3
"""What other users, links, full disks and the kernel's memory limit may not do to qalibd.  Needs root for most of it; skips say so."""
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time

from daemon_client import BUILD, Daemon, request

NOBODY = 65534
IS_ROOT = os.geteuid() == 0
OVER = {"SUCCEEDED", "FAILED", "CANCELLED"}
SECRET = b"a secret of somebody else\n"
root = pathlib.Path(tempfile.mkdtemp())
mounts = []

# Stands in for qalib; what it does hangs on the name of its output.
ENGINE = r"""#!/bin/bash
for word in "$@"; do [[ $word != --output=* ]] || output=${word#--output=}; done
case $1 in
doctor) echo '{"devices": []}' ;;
plan) echo '{"feasible": true, "peak_host_bytes": 1000, "peak_device_bytes": 0, "disk_bytes": 1000, "seconds": 0.1}' ;;
quantize)
    case $output in
    */hog*) exec tail /dev/zero ;;
    */flood*) head -c 8000000 /dev/zero | tr '\0' x >&2 ;;
    */long*) for ((i = 0; i < 15; i++)); do sleep 0.1; done ;;
    *) echo said >&2 ;;
    esac
    echo '{"layers": []}' ;;
esac
"""
engine = root / "engine"
engine.write_text(ENGINE)
engine.chmod(0o755)


def skip(what, why):
    print(f"SKIP: {what}: {why}")


def start(name, *options):
    (root / name).mkdir(exist_ok=True)
    daemon = Daemon(root / name, "--engine", str(engine), "--retry-base", "0.05", *options)
    daemon.start()
    return daemon


def submit(daemon, name):
    body = {"model": "/m", "output": f"{root}/{name}", "method": "rtn", "gpus": 0}
    status, text = request(daemon.socket, "POST", "/v1/jobs", body)
    assert status == 201, text
    return json.loads(text)["id"]


def show(daemon, job):
    return json.loads(request(daemon.socket, "GET", f"/v1/jobs/{job}")[1])


def wait(daemon, job, seconds=30):
    deadline = time.monotonic() + seconds
    while (record := show(daemon, job))["state"] not in OVER:
        assert time.monotonic() < deadline, record
        time.sleep(0.05)
    return record


def refuses(code, words, *options):
    result = subprocess.run([BUILD / "qalibd", "--gpus", "none", "--engine", engine, *map(str, options)], capture_output=True, text=True, timeout=20)
    assert result.returncode == code and words in result.stderr, (result.returncode, result.stderr)


def directories_and_sockets():
    """The state directory and the place of the socket are ours alone."""
    own = root / "own"
    own.mkdir(mode=0o700)
    for mode in 0o777, 0o770:
        shared = root / f"shared-{mode:o}"
        shared.mkdir()
        shared.chmod(mode)
        refuses(77, "others may write", "--state", shared, "--socket", own / "s")
        assert not list(shared.iterdir()), "something was made in it"
    (root / "target").write_bytes(b"")
    (own / "link").symlink_to(root / "target")
    refuses(73, "no socket of this user", "--state", own / "state", "--socket", own / "link")
    assert (own / "link").is_symlink() and (root / "target").exists()
    if not IS_ROOT:
        return skip("directories and sockets of other users", "not root")
    theirs = root / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, NOBODY, NOBODY)
    refuses(77, "another user", "--state", theirs, "--socket", own / "s")
    refuses(77, "another user", "--state", own / "state", "--socket", theirs / "s")
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(own / "foreign"))
    os.chown(own / "foreign", NOBODY, NOBODY)
    refuses(73, "no socket of this user", "--state", own / "state", "--socket", own / "foreign")


def as_nobody(path):
    """The status that a process of another user is answered with; 0: it cannot connect."""
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            os._exit(request(path, "GET", "/v1/jobs")[0] // 100)
        except OSError:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def other_users():
    """Q7: they do not reach the socket; where somebody passed one that they do reach, they are refused by their number."""
    if not IS_ROOT:
        return skip("connections of other users", "not root")
    daemon = start("users")
    root.chmod(0o755)
    (root / "users").chmod(0o755)
    assert as_nobody(daemon.socket) == 0, "a socket that others can open"
    daemon.stop()
    path = str(root / "open-socket")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o666)
    listener.listen(8)
    child = os.fork()
    if child == 0:
        os.dup2(listener.fileno(), 3)
        os.set_inheritable(3, True)
        os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
        os.dup2(os.open(root / "users" / "log", os.O_WRONLY | os.O_APPEND), 2)
        os.execv(BUILD / "qalibd", ["qalibd", "--state", str(root / "users" / "state"), "--socket", path, "--engine", str(engine), "--gpus", "none"])
    try:
        for _ in range(500):
            if request(path, "GET", "/readyz", timeout=10)[0] == 200:
                break
        assert as_nobody(path) == 4, "another user was answered"
        assert request(path, "GET", "/readyz")[0] == 200
    finally:
        os.kill(child, 15)
        os.waitpid(child, 0)
    root.chmod(0o700)


def links():
    """Q8: links in the state directory lead nowhere, whoever planted them and however fast they come and go."""
    daemon = start("links")
    outside = root / "outside"
    outside.mkdir()
    (outside / "file").write_bytes(SECRET)
    job = submit(daemon, "linked")
    assert wait(daemon, job)["state"] == "SUCCEEDED"
    directory = daemon.state / "jobs" / job
    log, kept, over, swaps = directory / "attempt-1" / "log.0000", root / "kept", threading.Event(), 0
    shutil.copy(log, kept)

    def swap():
        nonlocal swaps
        while not over.is_set():
            for make in (lambda name: os.symlink(outside / "file", name), lambda name: os.link(kept, name)):
                make(root / "swap")
                os.rename(root / "swap", log)
                swaps += 1

    thread = threading.Thread(target=swap)
    thread.start()
    for _ in range(1500):
        assert SECRET not in request(daemon.socket, "GET", f"/v1/jobs/{job}/log")[1], "a link was followed"
    over.set()
    thread.join()
    assert swaps > 1000, swaps
    events = directory / "events.jsonl"
    events.unlink()
    events.symlink_to(outside / "file")
    assert SECRET not in request(daemon.socket, "GET", f"/v1/jobs/{job}/events")[1]
    (directory / "beneath").symlink_to(outside)
    (directory / "attempt-1" / "beneath").symlink_to(outside / "file")
    assert request(daemon.socket, "DELETE", f"/v1/jobs/{job}")[0] == 204 and not directory.exists()
    assert (outside / "file").read_bytes() == SECRET, "removed through a link"
    # A directory of a job that lies elsewhere, and a record that is a link, are left alone by the next daemon.
    daemon.kill()
    shutil.rmtree(daemon.state / "trash")
    (daemon.state / "trash").symlink_to(outside)
    daemon.start()
    assert (outside / "file").read_bytes() == SECRET and list(outside.iterdir()) == [outside / "file"], "the trash was emptied through a link"
    for path in "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "01ARZ3NDEKTSV4RRFFQ69G5FAV/../../secret":
        assert request(daemon.socket, "GET", f"/v1/jobs/{path}")[0] == 404, path
    daemon.stop()


def full_disk():
    """D4: a log that fills the disk, or finds no inode, stops no job, and somebody says so."""
    if not IS_ROOT:
        return skip("full disks", "not root")
    for name, options in ("bytes", "size=3m"), ("inodes", "size=64m,nr_inodes=90"):
        state = root / name / "state"
        state.mkdir(parents=True, mode=0o700)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "none", state], capture_output=True).returncode:
            return skip("full disks", "no tmpfs can be mounted")
        mounts.append(state)
        daemon = start(name, "--log-limit", "64")
        job = submit(daemon, f"{name}-before")
        assert wait(daemon, job)["state"] == "SUCCEEDED"
        if name == "inodes": # those that are left go once the worker runs
            job = submit(daemon, "long-inodes")
            while show(daemon, job)["state"] != "RUNNING":
                time.sleep(0.02)
            time.sleep(0.3)
            for i in range(90):
                try:
                    (state / f"filler-{i}").touch()
                except OSError:
                    break
            time.sleep(1.7)
            assert show(daemon, job)["state"] not in {"FAILED", "CANCELLED"}
            for filler in state.glob("filler-*"):
                filler.unlink()
        else:
            job = submit(daemon, "flood")
        record = wait(daemon, job)
        assert record["state"] == "SUCCEEDED" and record["attempt"] == 1, record
        if name == "bytes":
            assert json.loads((state / "jobs" / job / "attempt-1" / "exit.json").read_text())["log_lost"]
            assert "no room for all of its log" in (root / name / "log").read_text(), "nobody says that the log is lost"
            assert request(daemon.socket, "GET", f"/v1/jobs/{job}/log")[0] == 200
        assert wait(daemon, submit(daemon, f"{name}-behind"))["state"] == "SUCCEEDED"
        daemon.stop()


def make_group():
    """A cgroup of version 2 or 1 below ours that may take 200 MiB; None: it cannot be made."""
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        base = pathlib.Path("/sys/fs/cgroup" + ("" if number == "0" else "/memory")) / path.lstrip("/")
        limit = "memory.max" if number == "0" else "memory.limit_in_bytes"
        if number != "0" and controllers != "memory":
            continue
        group = base / f"qalib-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(200 << 20))
            return group
        except OSError:
            if group.exists():
                group.rmdir()
    return None


def memory_limit():
    """M4: a worker beyond the limit of its cgroup is told apart, tried once more, and disturbs nobody."""
    group = make_group() if IS_ROOT else None
    if group is None:
        return skip("the memory limit of a cgroup", "no cgroup can be made" if IS_ROOT else "not root")
    (root / "memory").mkdir()
    daemon = Daemon(root / "memory", "--engine", str(engine), "--retry-base", "0.05", "--cpu-jobs", "2")
    mine = {line.split(":")[0]: line.split(":", 2)[2] for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines()}
    (group / "cgroup.procs").write_text(str(os.getpid()))
    try:
        daemon.start()
    finally: # what is started now stays in there
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
    assert mine == {line.split(":")[0]: line.split(":", 2)[2] for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines()}
    beside, hog = submit(daemon, "long-beside"), submit(daemon, "hog")
    record = wait(daemon, hog, 60)
    assert record["state"] == "FAILED" and record["attempt"] == 2, record
    assert "killed by the kernel for memory (cgroup oom_kill " in record["reason"], record
    ends = [json.loads((daemon.state / "jobs" / hog / f"attempt-{n}" / "exit.json").read_text()) for n in (1, 2)]
    assert all(end["out_of_memory"] and end["signal"] == 9 for end in ends), ends
    record = wait(daemon, beside)
    assert record["state"] == "SUCCEEDED" and record["attempt"] == 1, record
    daemon.stop()
    for _ in range(100):
        try:
            group.rmdir()
            break
        except OSError:
            time.sleep(0.05)


try:
    for part in directories_and_sockets, other_users, links, full_disk, memory_limit:
        begin = time.monotonic()
        part()
        print(f"{part.__name__}: {time.monotonic() - begin:.1f} s")
finally:
    for mount in mounts:
        subprocess.run(["umount", "-l", mount], check=False)
    shutil.rmtree(root, ignore_errors=True)
