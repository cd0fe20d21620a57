#!/usr/bin/env python3
"""Runs the examples of README.md, --help and the manual pages: examples.py BUILD DIR.  DIR is empty and on a local disk.

Each runs in a fresh copy of a folder with the files that examples name: MODEL (the first layer of the demo model), tokens.h5, OUT, ...
What cannot run here is listed in NOT_RUN with the reason; its options are still parsed (the command with --help behind it).
"""
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import time

build, top = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2])
root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
qalib, qalibd = f"{build}/qalib", f"{build}/qalibd"
template, here = f"{top}/template", f"{top}/here"
ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"  # of the examples
env = dict(os.environ, PATH=f"{build}:{os.environ['PATH']}", HOME=f"{top}/home", XDG_RUNTIME_DIR=f"{top}/run", COLUMNS="100",
           QALIB_VENV=os.environ.get("QALIB_VENV", os.path.expanduser("~/.local/share/qalib/venv")), OMP_WAIT_POLICY="passive")

NOT_RUN = [
    (r"^scripts/", "installs, builds or tests everything: this is part of it"),
    (r"^vllm ", "another project's program, and a GPU"),
    (r"^qalib bench", "minutes of measuring; tests/e2e/bench.sh and block.sh do it on small shapes"),
    (r"^qalib sbatch .*--submit", "needs Slurm; tests/slurm.sh has one"),
    (r"^qalib (cancel|pause|resume|retry) ", "needs a job in the right state at the right moment; tests/e2e/daemon.sh"),
]


def also_not_run(pattern, reason):
    print(f"skip: {pattern[1:]}: {reason}")
    NOT_RUN.append((pattern, reason))


def run(words, cwd=template, **options):
    return subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, **options)


def must(words, **options):
    done = run(words, **options)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


# ---- examples ----------------------------------------------------------------------------------------------------------------------


def after(title, text):
    """The lines of --help behind "Examples:"."""
    found = re.search(rf"\n{title}\n(.*)\Z", text, re.S)
    return [line[2:] for line in found.group(1).rstrip("\n").split("\n")] if found else []


def of_page(text):
    return re.search(r"# EXAMPLES\n\n```\n(.*?)\n```", text, re.S).group(1).split("\n")


def collect():
    overview = must([qalib, "--help"], cwd=root)
    names = re.findall(r"^  (\w+)", re.search(r"\nCommands:\n(.*?)\n\n", overview, re.S).group(1), re.M)
    found = []
    for words in [[]] + [[name] for name in names]:
        lines = after("Examples:", must([qalib, *words, "--help"], cwd=root))
        assert lines, f"qalib {' '.join(words)} --help has no examples"
        assert lines == of_page(must([qalib, "manual", *words], cwd=root)), f"{words}: the page has other examples than --help"
        found += lines
    readme = open(f"{root}/README.md").read()
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", readme, re.S | re.M):
        found += [line for line in block.split("\n") if line.strip() and language in ("", "sh")]
    spans = re.findall(r"`((?:build/)?qalib [^`\n]*)`", re.sub(r"^```.*?^```", "", readme, flags=re.S | re.M))
    return list(dict.fromkeys(found)), [s for s in dict.fromkeys(spans) if "..." not in s]


# ---- what they name ------------------------------------------------------------------------------------------------------------------


def make_template():
    os.makedirs(template)
    os.makedirs(f"{top}/home")
    os.makedirs(f"{top}/run/qalib", mode=0o700)
    must([sys.executable, f"{root}/tests/trim_model.py", f"{root}/demo/model", "MODEL"])
    config = open(f"{template}/MODEL/config.json").read()  # room for the longest example
    open(f"{template}/MODEL/config.json", "w").write(re.sub(r'("max_position_embeddings": )\d+', r"\g<1>4096", config))
    must([f"{build}/make_model", f"{top}/tiny", "--layers", "1", "--rows", "8", "--seqlen", "32", "--tokens", "tokens.h5"])
    for copy in ("eval.h5", "held-out.h5"):
        shutil.copy(f"{template}/tokens.h5", f"{template}/{copy}")
    shutil.copy(f"{template}/MODEL/model-00001-of-00002.safetensors", template)
    shutil.copytree(f"{root}/tests/data/configs/llama-2-70b", f"{template}/llama-2-70b")
    words = random.Random(1).choices("the mould of a shoe and a hat is what it was when they came home that evening".split(), k=400000)
    text = " ".join(words)
    for name in ("text.txt", "book.txt"):
        open(f"{template}/{name}", "w").write(text)
    with open(f"{template}/chats.jsonl", "w") as f:
        for i in range(0, len(text), 10000):
            f.write('{"text": "%s"}\n' % text[i:i + 10000])
    must([qalib, *"quantize -m MODEL -o OUT --bits 4 --group-size 128 --sym --calib tokens.h5".split()])
    shutil.rmtree(f"{template}/OUT.work")
    must([qalib, *"calibrate -m MODEL --calib tokens.h5 -w STATS".split()])
    for name in ("work", "work-a", "work-b"):
        shutil.copytree(f"{template}/STATS", f"{template}/{name}")
    must([qalib, *"stats imatrix work -o FILE".split()])
    shutil.copytree(f"{template}/OUT", f"{template}/OUT-awq")
    must(["bash", "-c", "qalib eval -m OUT --tokens eval.h5 --base MODEL --json >eval.json"])
    os.symlink(build, f"{template}/build")
    os.symlink(f"{root}/scripts", f"{template}/scripts")


def wait_for_jobs():
    """Until the daemon works on none: an example that does not wait still writes to what the next one submits."""
    for _ in range(600):
        jobs = json.loads(must([qalib, "jobs", "--json"]))["jobs"]
        if all(job["state"] in ("SUCCEEDED", "FAILED", "CANCELLED", "PAUSED") for job in jobs):
            return
        time.sleep(0.1)
    raise AssertionError("a job does not end")


def fresh(line):
    """The template once more, without what the example makes."""
    if line.startswith("qalib submit"):
        wait_for_jobs()
    shutil.rmtree(here, ignore_errors=True)
    must(["cp", "-r", "--reflink=auto", template, here], cwd=top)  # no links: shells write into files
    made = re.search(r"^qalib (quantize|export|submit|sbatch|calibrate).* (?:-o|-w) (\S+)", line)
    if made:
        shutil.rmtree(f"{here}/{made.group(2)}", ignore_errors=True)


# ---- running ----------------------------------------------------------------------------------------------------------------------------


def parse(line):
    """Its options, by its own command with --help behind them."""
    words = shlex.split(re.split(r"\s(?:\||>|&&|#)", line + " ")[0], comments=True)
    if words[0].startswith("scripts/"):
        must(["bash", "-n", words[0]])
    elif words[0] in ("qalib", "build/qalib", "qalibd"):
        must([*words, "--help"])


def start_daemon(line):
    daemon = subprocess.Popen(["bash", "-c", f"exec {line}"], env=env, cwd=top, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.makedirs(f"{top}/home/jobs", mode=0o700, exist_ok=True)
    os.symlink(f"{top}/home/jobs/socket", f"{top}/run/qalib/socket")
    for _ in range(100):
        if run([qalib, "jobs"]).returncode == 0:
            return daemon
        assert daemon.poll() is None, f"{line}: ended with {daemon.returncode}"
        time.sleep(0.1)
    raise AssertionError(f"{line}: does not answer")


def a_job():
    """An ID that the daemon knows, of a job that is over."""
    if not a_job.id:
        a_job.id = must([qalib, *f"submit -m MODEL -o {top}/job --bits 8 --method rtn --wait -q".split()]).split()[0]
    return a_job.id


a_job.id = None


def main():
    os.umask(0o077)
    make_template()
    examples, spans = collect()
    daemon = None
    if not os.path.exists(env["QALIB_VENV"]):
        also_not_run(r"^qalib tokenize", "needs the tokenizers' environment; scripts/setup.sh --test makes it")
    if '"cuda' not in must([qalib, "doctor", "--json"]):
        also_not_run(r"^qalib plan .*--device cuda", "needs a GPU")
    if not shutil.which("scdoc") or not shutil.which("man"):
        also_not_run(r"^qalib manual quantize \|", "needs scdoc and man")
    if os.path.exists(qalibd):
        of_daemon = after("Examples:", must([qalibd, "--help"]))
        daemon = start_daemon(of_daemon[0])
        examples += of_daemon[1:]
    else:
        also_not_run(r"^qalib (submit|jobs|show|logs|rm)", "qalibd was not built")
    done = left = 0
    try:
        for line in examples:
            plain = re.sub(r"^build/", "", line)
            if any(re.search(pattern, plain) for pattern, _ in NOT_RUN):
                parse(line)
                left += 1
                continue
            fresh(plain)
            command = line.replace(ID, a_job()) if ID in line else line
            begin = time.time()
            made = run(["bash", "-c", command], cwd=here, timeout=120)
            assert made.returncode == 0, f"exit code {made.returncode}: {line}\n{made.stderr[-1000:]}"
            done += 1
            if os.environ.get("VERBOSE"):
                print(f"{time.time() - begin:6.2f} s  {line}")
        for span in spans:
            parse(span)
    finally:
        if daemon:
            daemon.terminate()
            daemon.wait(30)
    print(f"examples: {done} run, {left} only parsed; {len(spans)} more in the text of README.md parsed")


main()
