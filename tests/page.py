#!/usr/bin/env python3
"""The status page in headless Chromium: what it shows of an empty queue, a running, a failed and a finished job, light and dark.

    tests/page.py [DIR]        DIR: where the screenshots go, to be looked at; without it none are kept

Checked: no error in the console, every word of text against its background (4.5 to 1), names of everything that takes the focus, jobs that are
chosen and paused with keys alone, no sideways scrolling at 360 pixels, and what stands there.
"""
import base64
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

from daemon_client import BUILD, Daemon, request

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if not CHROMIUM:
    print("SKIP: the status page: no chromium")
    sys.exit(0)
shots = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None
root = pathlib.Path(tempfile.mkdtemp())


class Browser:
    """Chromium through its pipe: JSON messages, each with a NUL behind it."""

    def __init__(self):
        to, self.out = os.pipe()
        self.inn, frm = os.pipe()

        def place():
            os.dup2(to, 13), os.dup2(frm, 14)
            os.dup2(13, 3), os.dup2(14, 4)

        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars",
                   f"--user-data-dir={root}/profile", "--remote-debugging-pipe", "about:blank"]
        self.process = subprocess.Popen(command, preexec_fn=place, close_fds=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(to), os.close(frm)
        self.number, self.rest, self.errors, self.session = 0, b"", [], None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in "Page", "Runtime", "Log":
            self.call(f"{domain}.enable")

    def receive(self):
        while b"\0" not in self.rest:
            part = os.read(self.inn, 1 << 20)
            assert part, "the browser is gone"
            self.rest += part
        text, _, self.rest = self.rest.partition(b"\0")
        message = json.loads(text)
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(message["params"]["exceptionDetails"])
        if message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
            self.errors.append(message["params"]["entry"]["text"])
        return message

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            pass
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def value(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression, seconds=20):
        deadline = time.monotonic() + seconds
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < deadline, (expression, self.value("document.body.innerText"))
            time.sleep(0.05)

    def key(self, key, code):
        for kind in "keyDown", "keyUp":
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def show(self, width=1100, dark=False):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])

    def shoot(self, name):
        if shots:
            shots.mkdir(parents=True, exist_ok=True)
            picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
            (shots / f"{name}.png").write_bytes(base64.b64decode(picture))


def forward(client, path):
    with client, socket.socket(socket.AF_UNIX) as s:
        try:
            s.connect(path)
        except OSError: # the daemon has ended
            return

        def copy(source, target):
            try:
                while data := source.recv(1 << 16):
                    target.sendall(data)
                target.shutdown(socket.SHUT_WR)
            except OSError:
                pass

        back = threading.Thread(target=copy, args=(s, client), daemon=True)
        back.start()
        copy(client, s)
        back.join()


def listen(path):
    """A port that leads to the socket."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            client, _ = server.accept()
            threading.Thread(target=forward, args=(client, path), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()[1]


# Every element with text of its own against the nearest background above it: the contrast of WCAG, least first.
CONTRAST = r"""(() => {
  const part = v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => .2126 * part(c[0]) + .7152 * part(c[1]) + .0722 * part(c[2]);
  const color = s => s.match(/[\d.]+/g).map(Number);
  const back = e => { for (; e; e = e.parentElement) { const c = color(getComputedStyle(e).backgroundColor); if (c.length < 4 || c[3] > 0) return c; } return [255, 255, 255]; };
  return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.closest('svg') && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()))
    .map(e => { const a = light(color(getComputedStyle(e).color)), b = light(back(e)); return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.tagName + '.' + e.className]; })
    .sort((a, b) => a[0] - b[0])[0];
})()"""
UNNAMED = r"""[...document.querySelectorAll('button, a[href], progress, [tabindex], summary, svg')].filter(e => e.checkVisibility() &&
  !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML.slice(0, 80))"""


def look(name):
    """One state of the page, light and dark, wide and narrow."""
    for dark in False, True:
        browser.show(dark=dark)
        ratio, where = browser.value(CONTRAST)
        assert ratio >= 4.5, f"{name}: {'dark' if dark else 'light'}: {where} has a contrast of {ratio:.2f}"
        browser.shoot(f"{name}-{'dark' if dark else 'light'}")
    unnamed = browser.value(UNNAMED)
    assert not unnamed, f"{name}: without a name: {unnamed}"
    browser.show(width=360)
    assert browser.value("document.documentElement.scrollWidth") <= 360, f"{name}: wider than 360 pixels"
    browser.shoot(f"{name}-narrow")
    browser.show()
    assert not browser.errors, f"{name}: {browser.errors}"
    print(f"{name}: shown")


def text(element):
    return browser.value(f"document.getElementById('{element}').innerText")


def submit(name, **fields):
    body = {"model": str(root / "model"), "output": str(root / name), "gpus": 0, **fields}
    status, answer = request(daemon.socket, "POST", "/v1/jobs", body)
    assert status == 201, answer
    return json.loads(answer)["id"]


model = subprocess.run([BUILD / "make_model", root / "model", "--layers", "6", "--rows", "64", "--seqlen", "128", "--tokens", root / "tokens.h5"], capture_output=True)
assert model.returncode == 0, model.stderr
daemon = Daemon(root, "--engine", BUILD / "qalib", "--cache", "0")
daemon.start()
page = f"http://127.0.0.1:{listen(daemon.socket)}/"
browser = Browser()
stopped = None
try:
    browser.show()
    browser.call("Page.navigate", url=page)
    browser.until("document.getElementById('none')?.hidden === false")
    assert "no jobs yet" in text("none")
    look("empty")

    job = {"calib": str(root / "tokens.h5"), "scheme": "W4A16-GPTQ-g32,W8A16-GPTQ-g32", "threads": 1}
    running = submit("running", **job)
    waiting = submit("waiting", **job)
    pids = daemon.state / "jobs" / running / "attempt-1" / "runner.json"
    while not pids.exists():
        time.sleep(0.01)
    stopped = json.loads(pids.read_text())["worker"]
    events = daemon.state / "jobs" / running / "events.jsonl"
    while '"layer":2' not in events.read_text(): # it stands still behind its third layer
        os.kill(stopped, signal.SIGCONT)
        time.sleep(0.01)
        os.kill(stopped, signal.SIGSTOP)
        time.sleep(0.02)
    browser.until(f"document.querySelector('button[data-id=\"{running}\"]')")
    # With keys alone: to the running job, and into it.
    for _ in range(20):
        browser.key("Tab", 9)
        if browser.value("document.activeElement.dataset.id") == running:
            break
    else:
        raise SystemExit("the job cannot be reached with Tab")
    browser.key("Enter", 13)
    browser.until(f"document.getElementById('job-title').textContent.includes('{running}: RUNNING')")
    assert browser.value("document.activeElement.id") == "job-title", "the focus stays behind"
    browser.until("document.querySelectorAll('#charts svg').length === 2 && document.querySelectorAll('#charts rect').length >= 4")
    assert re.search(r"[2-5] of 7 steps, .*about .* left", text("phase")), text("phase")
    assert "W4A16-GPTQ-g32" in text("facts") and "of host memory" in text("facts"), text("facts")
    assert text("told").startswith("The job is running"), text("told")
    assert browser.value("document.querySelectorAll('#acts button').length") == 2
    look("running")

    # Paused by key, as the page says; then it goes on.
    browser.value("document.querySelector('#acts button').focus()")
    browser.key("Enter", 13)
    browser.until("document.getElementById('job-title').textContent.includes('PAUSING')")
    os.kill(stopped, signal.SIGCONT)
    stopped = None
    browser.until("document.getElementById('job-title').textContent.includes('PAUSED')")
    request(daemon.socket, "POST", f"/v1/jobs/{running}/resume")
    browser.until("document.getElementById('job-title').textContent.includes('SUCCEEDED')", 60)
    browser.until("!document.getElementById('report').hidden")
    browser.until("document.querySelector('tr:has([aria-current])').innerText.includes('SUCCEEDED')", 1) # not when the list is asked for again
    rows = text("outputs")
    assert all(name in rows for name in ("W4A16-GPTQ-g32", "W8A16-GPTQ-g32", "gptq")), rows
    assert "forward" in text("phases") and "%" in text("phases"), text("phases")
    assert browser.value("document.querySelectorAll('#losses tbody tr').length") == 12
    assert "7/7 end" in text("log") and "SIGUSR1" not in text("log"), text("log") # of the second try
    look("finished")

    failed = submit("failed", calib=str(root / "nowhere.h5"), scheme="W4A16-GPTQ-g32")
    browser.until(f"document.querySelector('button[data-id=\"{failed}\"]')")
    browser.value(f"document.querySelector('button[data-id=\"{failed}\"]').click()")
    browser.until("document.getElementById('job-title').textContent.includes('FAILED')", 60)
    assert "nowhere.h5" in text("reason"), text("reason")
    assert "retry" in text("acts")
    browser.until("document.getElementById('log').textContent.includes('never ran')")
    look("failed")

    # Markup in what others wrote stays text; the daemon's end is said.
    odd = submit("<img src=x onerror=alert(1)>", calib=str(root / "nowhere.h5"), scheme="W4A16-GPTQ-g32")
    browser.until(f"document.querySelector('button[data-id=\"{odd}\"]')")
    assert browser.value("document.images.length") == 0 and "<img" in text("queue")
    assert not browser.errors, browser.errors
    daemon.stop()
    browser.until("document.getElementById('summary').textContent.includes('does not answer')")
    print("page: four states, light and dark, keys, contrast, 360 pixels")
finally:
    if stopped:
        os.kill(stopped, signal.SIGCONT)
    browser.process.kill()
    browser.process.wait()
    daemon.process.kill()
    shutil.rmtree(root, ignore_errors=True)
