#!/usr/bin/env python3
"""Speaks broken HTTP to a running qalibd: every case ends in an answer of 4xx or 5xx, or in a closed connection, and costs nothing.

After each case the daemon still takes jobs (/readyz); at the end it is the same process, holds as many descriptors as before, has not
grown, and has exactly the jobs of those requests that were whole.
"""
import json
import os
import random
import shutil
import socket
import tempfile
import time

from daemon_client import Daemon, request

random.seed(11)
root = tempfile.mkdtemp()
daemon = Daemon(root, "--idle-timeout", "1", "--connections", "64")
daemon.start()
pid = daemon.process.pid
body = json.dumps({"model": "/m", "output": f"{root}/whole", "method": "rtn"}).encode()
POST, GET = b"POST /v1/jobs HTTP/1.1\r\nHost: q\r\n", b"GET /healthz HTTP/1.1\r\nHost: q\r\n"


def talk(data, half_close=False, wait=3.0):
    """All that comes back until the daemon closes, or says nothing more."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(wait)
        s.connect(daemon.socket)
        try:
            s.sendall(data)
            if half_close:
                s.shutdown(socket.SHUT_WR)
            while part := s.recv(1 << 16):
                answer += part
        except (BrokenPipeError, ConnectionResetError):
            pass
        except TimeoutError:
            raise SystemExit(f"still open after {wait} s: {data[:200]!r} -> {answer[:200]!r}")
    return answer


def statuses(answer):
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] if answer else []


def descriptors():
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident_mib():
    return int(open(f"/proc/{pid}/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20


def ready(case):
    assert daemon.process.poll() is None, f"{case}: the daemon is gone: {daemon.process.returncode}"
    assert request(daemon.socket, "GET", "/readyz")[0] == 200, f"{case}: not ready"


cases = 0


def refused(case, data, **options):
    global cases
    cases += 1
    got = statuses(talk(data, **options))
    assert all(400 <= status < 600 for status in got), f"{case}: {got}"
    ready(case)


chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
refused("chunk: no number", chunked + b"zz\r\nabc\r\n0\r\n\r\n")
refused("chunk: negative", chunked + b"-5\r\nabc\r\n0\r\n\r\n")
refused("chunk: beyond 64 bits", chunked + b"fffffffffffffffff\r\nabc\r\n0\r\n\r\n")
refused("chunk: the largest number", chunked + b"ffffffffffffffff\r\nabc", half_close=True)
refused("chunk: longer than said", chunked + b"2\r\nabcdef\r\n0\r\n\r\n")
refused("chunk: without its end", chunked + b"5\r\nabcde", half_close=True)
refused("chunk: an endless extension", chunked + b"1;" + b"x" * 100000 + b"\r\na\r\n0\r\n\r\n")
refused("chunk: more than a body may have", chunked + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 20 + b"0\r\n\r\n")
refused("chunk: endless trailers", chunked + b"0\r\n" + b"x: y\r\n" * 20000 + b"\r\n")
refused("header: 64 KiB", GET + b"X: " + b"a" * 65536 + b"\r\n\r\n")
refused("header: 10,000 of them", GET + b"X: y\r\n" * 10000 + b"\r\n")
refused("header: never ends", GET + b"X: y\r\n", half_close=True)
refused("header: no colon", b"GET /healthz HTTP/1.1\r\n: : :\x00\r\n\x00nonsense", half_close=True)
refused("address: 64 KiB", b"GET /" + b"a" * 65536 + b" HTTP/1.1\r\nHost: q\r\n\r\n")
refused("address: 1,000 arguments", b"GET /v1/jobs?" + b"a=1&" * 1000 + b" HTTP/1.1\r\nHost: q\r\nConnection: close\r\n\r\n")
refused("method: 8 KiB", b"A" * 8192 + b" / HTTP/1.1\r\nHost: q\r\nConnection: close\r\n\r\n")
for method in b"TRACE", b"CONNECT", b"PATCH", b"get", b"\x00", b"P\xffST":
    refused(f"method {method}", method + b" / HTTP/1.1\r\nHost: q\r\nConnection: close\r\n\r\n")
refused("version 9.9", b"GET / HTTP/9.9\r\n\r\n", half_close=True)
refused("preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", half_close=True)
refused("TLS", bytes.fromhex("16030100a5010000a10303") + os.urandom(160), half_close=True)
refused("a NUL in the address", b"GET /heal\x00thz HTTP/1.1\r\nHost: q\r\nConnection: close\r\n\r\n")
refused("NUL bytes as a body", POST + b"Connection: close\r\nContent-Length: 64\r\n\r\n" + bytes(64))
refused("an address that climbs", b"GET /../../etc/passwd HTTP/1.1\r\nHost: q\r\nConnection: close\r\n\r\n")
refused("length: negative", POST + b"Content-Length: -1\r\n\r\n" + body, half_close=True)
refused("length: signed", POST + b"Content-Length: +5\r\n\r\nabcde", half_close=True)
refused("length: beyond 64 bits", POST + b"Content-Length: 18446744073709551617\r\n\r\n" + body, half_close=True)
refused("length: a gigabyte", POST + b"Content-Length: 1000000000\r\nConnection: close\r\n\r\n" + body, half_close=True)
refused("length: longer than the body", POST + b"Content-Length: %d\r\n\r\n" % (len(body) + 9) + body, half_close=True)
refused("length: shorter than the body", POST + b"Content-Length: 9\r\n\r\n" + body, half_close=True)
refused("nothing", b"", half_close=True)
for i in range(100):
    refused(f"garbage {i}", bytes(random.choices(b" \r\n:/GETPOS0123\x00\xff{}\"", k=random.randint(1, 3000))), half_close=True)

# What is whole is answered: in one piece with others, from its root, byte by byte, with the sender's side closed.
got = statuses(talk(GET + b"\r\n" + (GET + b"\r\n") * 48 + GET + b"Connection: close\r\n\r\n"))
assert got == [200] * 50, f"pipelined: {got}"
got = statuses(talk((GET + b"\r\n") * 3 + b"\x01\x02 nonsense\r\n\r\n", half_close=True))
assert got[:3] == [200] * 3 and all(status >= 400 for status in got[3:]), f"garbage behind three requests: {got}"
got = statuses(talk(b"GET http://q/healthz HTTP/1.1\r\nHost: q\r\nConnection: close\r\n\r\n"))
assert got == [404] or got == [200], f"absolute address: {got}"
assert statuses(talk(GET + b"\r\n", half_close=True)) == [200], "half closed"
got = statuses(talk(POST + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body))
assert got == [201], f"a whole job: {got}"
again = POST + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + b"".join(b"1\r\n%c\r\n" % c for c in body) + b"0\r\n\r\n"
assert statuses(talk(again)) in ([201], [409]), "a job in chunks of a byte" # whether the first one is over
# A length beside chunks is how requests are smuggled: one request, or none, never two.
smuggled = POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET + b"Connection: close\r\n\r\n"
got = statuses(talk(smuggled, half_close=True))
assert got and got[0] >= 400, f"length and chunks: {got}"
ready("smuggled")

# Sixty connections that dribble: the others are served, and the dribblers are closed when they pause.
before = descriptors()
slow = []
for _ in range(60):
    s = socket.socket(socket.AF_UNIX)
    s.connect(daemon.socket)
    s.sendall(b"GET /heal")
    slow.append(s)
for byte in b"thz":
    for s in slow:
        s.sendall(bytes([byte]))
    time.sleep(0.2)
    ready("dribble")
deadline = time.monotonic() + 10
for s in slow:
    s.settimeout(10)
    try:
        while s.recv(4096): # an answer of 408, perhaps, then the end
            pass
    except ConnectionResetError:
        pass
    s.close()
assert time.monotonic() < deadline, "dribblers are not closed"
# Everybody leaves without a word, in the middle of an answer too.
for i in range(200):
    s = socket.socket(socket.AF_UNIX)
    s.connect(daemon.socket)
    if i % 2:
        s.sendall(b"GET /v1/openapi.json HTTP/1.1\r\nHost: q\r\n\r\n" * 4)
    s.close()
ready("leavers")

deadline = time.monotonic() + 10
while descriptors() > before and time.monotonic() < deadline:
    time.sleep(0.05)
assert descriptors() <= before, f"descriptors: {before} before, {descriptors()} behind"
assert daemon.process.poll() is None and daemon.process.pid == pid
jobs = daemon.jobs()
assert 1 <= len(jobs) <= 2 and all(job["output"] == f"{root}/whole" for job in jobs), jobs
most = resident_mib()
assert most < 64, f"{most} MiB"
assert daemon.stop() == 0
print(f"framing: {cases} broken requests refused or closed, nothing left behind, {most} MiB")
shutil.rmtree(root)
