#!/usr/bin/env python3
"""A full queue and many clients: how fast qalibd starts, answers, and how much memory it takes.

    tests/daemon_load.py [JOBS [CLIENTS [SECONDS]]]      default: 10000 200 10

Each client keeps a connection and asks for a random job about ten times a second; others hold long polls, dribble, and send garbage. Prints
what the issue of the daemon asks for, and fails only where an answer is wrong: speed is a figure, not a test.
"""
import asyncio
import json
import pathlib
import random
import shutil
import sys
import tempfile
import time

from daemon_client import Daemon, request

jobs, clients, seconds = (int(a) for a in (sys.argv[1:] + ["10000", "200", "10"][len(sys.argv) - 1 :]))
DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
random.seed(7)
root = tempfile.mkdtemp()
daemon = Daemon(root, seconds="3600")

# One job through the front door, and the others made after its record.
daemon.start()
status, text = request(daemon.socket, "POST", "/v1/jobs", {"model": "/m", "output": f"{root}/first", "method": "rtn"})
assert status == 201, text
daemon.stop()
record = json.loads((daemon.state / "jobs" / json.loads(text)["id"] / "job.json").read_text())
ids = ["01" + "".join(random.choices(DIGITS, k=24)) for _ in range(jobs)]
for number, job in enumerate(ids):
    folder = daemon.state / "jobs" / job
    folder.mkdir()
    record["spec"]["output"] = f"{root}/{number}"
    (folder / "job.json").write_text(json.dumps({**record, "id": job, "state": "QUEUED", "attempt": 0, "rev": 0}))
rebuilt = Daemon(root, "--rebuild", seconds="3600")
rebuild_s = rebuilt.start()
rebuilt.kill()
start_s = daemon.start()


async def read_answer(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    length = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    body = await reader.readexactly(int(length[0].split(b":")[1]))
    return int(head.split()[1]), body


async def ask(times, until):
    reader, writer = await asyncio.open_unix_connection(daemon.socket)
    while time.monotonic() < until:
        job = random.choice(ids)
        begin = time.monotonic()
        writer.write(f"GET /v1/jobs/{job} HTTP/1.1\r\nHost: q\r\n\r\n".encode())
        status, body = await read_answer(reader)
        times.append(time.monotonic() - begin)
        assert status == 200 and json.loads(body)["id"] == job
        await asyncio.sleep(random.uniform(0.05, 0.15))
    writer.close()


async def wait_for_events(until):
    while time.monotonic() < until:
        reader, writer = await asyncio.open_unix_connection(daemon.socket)
        writer.write(f"GET /v1/jobs/{random.choice(ids)}/events?wait=2 HTTP/1.1\r\nHost: q\r\n\r\n".encode())
        assert (await read_answer(reader))[0] == 200
        writer.close()


async def annoy(until):
    pieces = [b"GET / HTTP/1.1\r\nX: " + b"a" * 65536, b"\x00\xff" * 500, b"POST /v1/jobs HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n{",
              b"GET /healthz HTTP/1.1\r\nHost: q\r\n\r\nGARBAGE\r\n\r\n" * 3, b"G"]
    while time.monotonic() < until:
        reader, writer = await asyncio.open_unix_connection(daemon.socket)
        try:
            writer.write(random.choice(pieces))
            await asyncio.wait_for(reader.read(1 << 16), 0.5)
        except (asyncio.TimeoutError, ConnectionError):
            pass
        writer.close()


async def load():
    times, until = [], time.monotonic() + seconds
    work = [ask(times, until) for _ in range(clients)] + [wait_for_events(until) for _ in range(20)] + [annoy(until) for _ in range(5)]
    await asyncio.gather(*work)
    return sorted(times)


times = asyncio.run(load())
resident = int((pathlib.Path("/proc") / str(daemon.process.pid) / "statm").read_text().split()[1]) * 4096
print(f"load: {jobs} jobs; ready in {start_s:.2f} s, rebuilt in {rebuild_s:.2f} s; {clients} clients, {len(times) / seconds:.0f} answers/s, "
      f"median {1e3 * times[len(times) // 2]:.1f} ms, p99 {1e3 * times[len(times) * 99 // 100]:.1f} ms, RSS {resident / 1e6:.1f} MB")
for job in daemon.jobs()[:1]:
    request(daemon.socket, "POST", f"/v1/jobs/{job['id']}/cancel")
daemon.kill()
shutil.rmtree(root, ignore_errors=True)
