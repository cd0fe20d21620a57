#!/usr/bin/env python3
"""Kills qalibd at random moments while jobs are submitted, cancelled and finished; then asks where everything is.

    tests/daemon_chaos.py [KILLS]        default: 10, with QALIB_TIER=full 500

Every submission that was answered is one job; a key that was sent again and again is one job; no worker ran twice at one time; what
succeeded ran to its end once; the index is sound and says what the directories say.
"""
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import threading
import time

from daemon_client import Daemon, request

kills = int(sys.argv[1]) if len(sys.argv) > 1 else 500 if os.environ.get("QALIB_TIER") == "full" else 10
OVER = {"SUCCEEDED", "FAILED", "CANCELLED"}
random.seed(7)
root = tempfile.mkdtemp()
daemon = Daemon(root, "--cpu-jobs", "4", "--retry-base", "0.05", "--grace", "2")
answered, cancelled, lock, over = {}, set(), threading.Lock(), threading.Event()


def submit(thread):
    """Each job is asked for until there is an answer, as a client does whose daemon went away."""
    number = 0
    while not over.is_set():
        key, number = f"{thread}.{number}", number + 1
        body = {"model": "/m", "output": f"{root}/{key}", "method": "rtn", "priority": number % 5}
        while not over.is_set():
            try:
                status, text = request(daemon.socket, "POST", "/v1/jobs", body, [f"Idempotency-Key: {key}"])
                assert status in (200, 201), text
                with lock:
                    answered[key] = json.loads(text)["id"]
                break
            except OSError:
                time.sleep(0.01)
        time.sleep(random.random() * 0.1)


def cancel():
    while not over.is_set():
        time.sleep(random.random() * 0.1)
        with lock:
            job = random.choice(list(answered.values())) if answered else None
        try:
            if job and request(daemon.socket, "POST", f"/v1/jobs/{job}/cancel")[0] == 200:
                cancelled.add(job)
        except OSError:
            pass


slowest = daemon.start()
threads = [threading.Thread(target=submit, args=(i,)) for i in range(4)] + [threading.Thread(target=cancel)]
for thread in threads:
    thread.start()
for _ in range(kills):
    time.sleep(random.random() * 0.3)
    daemon.kill()
    slowest = max(slowest, daemon.start())
over.set()
for thread in threads:
    thread.join()

deadline = time.monotonic() + 60 + kills
while left := [job for job in daemon.jobs() if job["state"] not in OVER]:
    assert time.monotonic() < deadline, left[:5]
    time.sleep(0.2)
jobs = daemon.jobs()
by_id = {job["id"]: job for job in jobs}
outputs = [job["output"] for job in jobs]
assert len(outputs) == len(set(outputs)), "a key made two jobs"
for key, job in answered.items():
    assert job in by_id and by_id[job]["output"] == f"{root}/{key}", f"job {job} of key {key} is lost"
for job in jobs:
    name = job["output"]
    assert not os.path.exists(name + ".doubled"), f"{job}: two workers at one time"
    done = len(open(name + ".done").readlines()) if os.path.exists(name + ".done") else 0
    assert done == 1 if job["state"] == "SUCCEEDED" else done <= 1, f"{job}: came to its end {done} times"
    assert job["state"] in {"SUCCEEDED", "CANCELLED"}, job
daemon.stop()
index = sqlite3.connect(daemon.state / "queue.db")
assert index.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
rows = {row[0] for row in index.execute("SELECT id FROM job")}
assert rows == {path.name for path in (daemon.state / "jobs").iterdir()} == set(by_id)
ends = {state: sum(job["state"] == state for job in jobs) for state in sorted(OVER)}
print(f"chaos: {kills} kills, {len(jobs)} jobs, none lost or doubled; {ends}; slowest start {slowest:.2f} s")
shutil.rmtree(root)
