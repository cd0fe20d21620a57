"""What the load and chaos scripts share: a daemon as a child, and requests to it."""
import atexit
import json
import os
import pathlib
import socket
import subprocess
import time

TESTS = pathlib.Path(__file__).resolve().parent
BUILD = pathlib.Path(os.environ.get("QALIB_BUILD", TESTS.parent / "build"))


def request(path, method, target, body=None, headers=(), timeout=30):
    """(status, body); OSError when the daemon is not there, or dies meanwhile."""
    data = b"" if body is None else json.dumps(body).encode()
    head = [f"{method} {target} HTTP/1.1", "Host: q", "Connection: close", f"Content-Length: {len(data)}", *headers]
    with socket.socket(socket.AF_UNIX) as s:
        s.settimeout(timeout)
        s.connect(path)
        s.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + data)
        answer = b""
        while part := s.recv(1 << 16):
            answer += part
    head, gap, body = answer.partition(b"\r\n\r\n")
    if not gap:
        raise ConnectionError("no answer")
    length = [line.split(b": ")[1] for line in head.split(b"\r\n") if line.startswith(b"Content-Length: ")]
    if length and int(length[0]) != len(body):
        raise ConnectionError("half an answer")
    return int(head.split()[1]), body


class Daemon:
    def __init__(self, root, *options, seconds="0.05"):
        self.root, self.options = pathlib.Path(root), options
        self.socket, self.state = str(self.root / "s"), self.root / "state"
        self.environment = {**os.environ, "FAKE_SECONDS": seconds}

    def start(self):
        """Seconds until it was ready."""
        begin = time.monotonic()
        command = [BUILD / "qalibd", "--state", self.state, "--socket", self.socket, "--engine", TESTS / "fake_engine.sh"]
        with open(self.root / "log", "ab") as log:
            self.process = subprocess.Popen([*command, "--gpus", "none", *self.options], stdout=log, stderr=log, env=self.environment)
        atexit.register(self.process.kill) # also when a check fails
        while True:
            try:
                if request(self.socket, "GET", "/readyz")[0] == 200:
                    return time.monotonic() - begin
            except OSError:
                pass
            if self.process.poll() is not None:
                raise SystemExit((self.root / "log").read_text()[-2000:])
            time.sleep(0.005)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.process.terminate()
        return self.process.wait()

    def jobs(self):
        found, after = [], ""
        while after is not None:
            target = "/v1/jobs?limit=1000" + (f"&after={after}" if after else "")
            page = json.loads(request(self.socket, "GET", target)[1])
            found += page["jobs"]
            after = page["next"]
        return found
