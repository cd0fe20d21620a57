#!/usr/bin/env python3
"""Text to rows of token ids: the helper behind `qalib tokenize`, which checks what comes from here and writes the token file.

    tokenize.py --tokenizer DIR --data FILE --seqlen N --nsamples N --seed N
    tokenize.py --setup                 # only makes the environment

stdout: one line of JSON {"n_seq", "seq_len", "vocab", "bos", "windows", "tokens", "documents", "notes"}, or {"status", "error"},
then n_seq * seq_len ids as little-endian int32.  Packages live in an environment of their own, made on first use in
$QALIB_VENV, else $XDG_DATA_HOME/qalib/venv, else ~/.local/share/qalib/venv.  With QALIB_PYTHON set nothing is made or installed.
"""
import os
import sys

# This folder is no place to import from: the standard library has a module of this file's name.
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != os.path.dirname(os.path.abspath(__file__))]

import argparse
import array
import fcntl
import hashlib
import importlib
import json
import subprocess
import venv
from pathlib import Path

VENV = Path(os.environ.get("QALIB_VENV") or
            Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "qalib" / "venv")
PACKAGES = {"tokenizers": ["--no-deps", "tokenizers>=0.20,<1"], "sentencepiece": ["sentencepiece>=0.2,<1"], "jinja2": ["jinja2>=3.1,<4"]}
# 32 MiB of text are some 8 million tokens, more than any calibration takes; encoding needs about 100 times the text in memory.
TEXT_LIMIT = 32 << 20
USAGE, FORMAT, MISSING, UNAVAILABLE = 64, 65, 66, 69


class Refused(Exception):
    def __init__(self, status, message):
        super().__init__(message)
        self.status = status


# ---- the environment -------------------------------------------------------------------------------------------------------

def run_in_environment():
    """Makes the environment if there is none and goes on in its interpreter."""
    ready = VENV / "ready"
    VENV.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{VENV}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            print(f"tokenize: making a Python environment in {VENV} (once)", file=sys.stderr)
            venv.create(VENV, clear=True, with_pip=True)
            ready.touch()
    python = str(VENV / "bin" / "python")
    os.execv(python, [python, "-I", __file__, *sys.argv[1:]])


def package(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        if os.environ.get("QALIB_PYTHON"):
            raise Refused(UNAVAILABLE, f"{sys.executable} has no package {name}; install it there, or unset QALIB_PYTHON")
    print(f"tokenize: installing {name} in {VENV} (once)", file=sys.stderr)
    with open(f"{VENV}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run([sys.executable, "-I", "-m", "pip", "install", "--quiet", *PACKAGES[name]], stdout=sys.stderr)
    importlib.invalidate_caches()
    if done.returncode != 0:
        raise Refused(UNAVAILABLE, f"the Python package {name} cannot be installed in {VENV}")
    return importlib.import_module(name)


# ---- tokenizers ------------------------------------------------------------------------------------------------------------

def load_json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise Refused(FORMAT, f"{path}: {error}")


def content(token):
    return token.get("content") if isinstance(token, dict) else token


class FastTokenizer:
    """tokenizer.json, by the package that defines it."""

    def __init__(self, path, config):
        tokenizers = package("tokenizers")
        try:
            self.inner = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises a bare Exception
            raise Refused(FORMAT, f"{path}: {error}")
        self.inner.no_truncation()
        self.inner.no_padding()
        self.vocab = 1 + max(self.inner.get_vocab(with_added_tokens=True).values(), default=-1)
        self.bos = self.find_bos(config)
        self.eos = self.inner.token_to_id(content(config.get("eos_token")) or "")

    def find_bos(self, config):
        """The id that starts a sequence, if the config or else the post-processor wants one."""
        if "add_bos_token" in config:
            token = content(config.get("bos_token")) or ""
            return self.inner.token_to_id(token) if config["add_bos_token"] else None
        plain = self.inner.encode("a", add_special_tokens=False).ids
        full = self.inner.encode("a", add_special_tokens=True).ids
        return full[0] if full[1:1 + len(plain)] == plain and len(full) > len(plain) else None

    def encode(self, text):
        return self.inner.encode(text, add_special_tokens=False).ids


class PieceTokenizer:
    """tokenizer.model alone, by sentencepiece."""

    def __init__(self, path, config):
        sentencepiece = package("sentencepiece")
        try:
            self.inner = sentencepiece.SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise Refused(FORMAT, f"{path}: {error}")
        self.vocab = self.inner.get_piece_size()
        self.bos = self.inner.bos_id() if config.get("add_bos_token", True) and self.inner.bos_id() >= 0 else None
        self.eos = self.inner.eos_id() if self.inner.eos_id() >= 0 else None

    def encode(self, text):
        return self.inner.encode(text, out_type=int)


def open_tokenizer(directory, config):
    for name, kind in (("tokenizer.json", FastTokenizer), ("tokenizer.model", PieceTokenizer)):
        if (directory / name).exists():
            return kind(directory / name, config)
    raise Refused(MISSING, f"{directory}: no tokenizer.json and no tokenizer.model")


# ---- documents -------------------------------------------------------------------------------------------------------------

def chat_renderer(directory, config):
    """A function from messages to text, by the tokenizer's own template in a sandbox."""
    template = config.get("chat_template")
    if isinstance(template, list):
        template = next((entry["template"] for entry in template if entry.get("name") == "default"), None)
    if (directory / "chat_template.jinja").exists():
        template = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    if not template:
        raise Refused(FORMAT, f"{directory}: the data hold chat messages, but this tokenizer has no chat template")
    package("jinja2")
    sandbox = importlib.import_module("jinja2.sandbox")

    def raise_exception(message):
        raise ValueError(message)

    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = raise_exception
    tokens = {name: content(value) for name, value in config.items() if name.endswith("_token") and content(value)}
    compiled = environment.from_string(template)
    return lambda messages: compiled.render(messages=messages, add_generation_prompt=False, **tokens)


def read_text(path, notes):
    """The beginning of the file as UTF-8, at most TEXT_LIMIT bytes, cut behind a line if there is one."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        data = file.read(TEXT_LIMIT)
    if size > len(data):
        end = data.rfind(b"\n") + 1
        while end == 0 and data and data[-1] & 0xC0 == 0x80:  # one long line: cut between characters
            data = data[:-1]
        data = data[:end] if end else data[:-1]
        notes.append(f"the first {len(data)} of {size} bytes are used")
    if b"\0" in data:
        raise Refused(FORMAT, f"{path}: line {data[:data.index(0)].count(10) + 1}: a NUL byte; this is not text")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refused(FORMAT, f"{path}: line {data[:error.start].count(10) + 1}: not UTF-8 at byte {error.start}")
    if "\r\n" in text:
        notes.append(f"{text.count(chr(13) + chr(10))} line ends CR LF became LF")
        text = text.replace("\r\n", "\n")
    return text


def document_of(line, number, path, render):
    try:
        record = json.loads(line)
    except ValueError as error:
        raise Refused(FORMAT, f"{path}: line {number}: {error}")
    text, messages = (record.get("text"), record.get("messages")) if isinstance(record, dict) else (None, None)
    if isinstance(text, str):
        return text
    if not isinstance(messages, list):
        raise Refused(FORMAT, f"{path}: line {number}: has neither \"text\" nor \"messages\"")
    try:
        return render(messages)
    except Refused:
        raise
    except Exception as error:  # a template may raise anything
        raise Refused(FORMAT, f"{path}: line {number}: the chat template failed: {error}")


def read_documents(path, directory, config, notes):
    text = read_text(path, notes)
    if path.suffix not in (".jsonl", ".ndjson"):
        return [text] if text.strip() else []
    renderer = []

    def render(messages):
        renderer or renderer.append(chat_renderer(directory, config))
        return renderer[0](messages)

    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    documents = [document_of(line, number, path, render) for number, line in lines]
    empty = sum(not document.strip() for document in documents)
    if empty:
        notes.append(f"{empty} empty documents were skipped")
    return [document for document in documents if document.strip()]


# ---- rows ------------------------------------------------------------------------------------------------------------------

def encode_all(tokenizer, documents, config):
    """One stream of ids; behind every document but a lone one comes the token that ends it."""
    bos_text = content(config.get("bos_token")) or ""
    ids = []
    for document in documents:
        if bos_text and tokenizer.bos is not None:
            document = document.removeprefix(bos_text)  # of a template: rows have their own
        try:
            ids.extend(tokenizer.encode(document))
        except Exception as error:  # the package raises a bare Exception
            raise Refused(FORMAT, f"the text cannot be tokenized: {error}")
        if len(documents) > 1 and tokenizer.eos is not None:
            ids.append(tokenizer.eos)
    return ids


def choose(windows, wanted, seed):
    """The windows whose hash with the seed is smallest: the same on every machine, and more rows contain fewer."""
    order = sorted(range(windows), key=lambda i: hashlib.sha256(f"{seed} {i}".encode()).digest())
    return sorted(order[:wanted])


def make_rows(options):
    directory, path, notes = Path(options.tokenizer), Path(options.data), []
    config = load_json(directory / "tokenizer_config.json")
    tokenizer = open_tokenizer(directory, config)
    documents = read_documents(path, directory, config, notes)
    if not documents:
        raise Refused(FORMAT, f"{path}: holds no text")
    ids = encode_all(tokenizer, documents, config)
    prefix = [] if tokenizer.bos is None else [tokenizer.bos]
    step = options.seqlen - len(prefix)
    windows = len(ids) // step
    if windows < options.nsamples:
        raise Refused(FORMAT, f"{path}: {len(ids)} tokens make {windows} rows of {options.seqlen}, {options.nsamples} were asked for; "
                              "take more text, or less --seqlen or --nsamples")
    rows = array.array("i")
    for window in choose(windows, options.nsamples, options.seed):
        rows.extend(prefix + ids[window * step:(window + 1) * step])
    if sys.byteorder == "big":
        rows.byteswap()
    return {"n_seq": options.nsamples, "seq_len": options.seqlen, "vocab": tokenizer.vocab, "bos": tokenizer.bos, "windows": windows,
            "tokens": len(ids), "documents": len(documents), "notes": notes}, rows


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setup", action="store_true")
    parser.add_argument("--tokenizer")
    parser.add_argument("--data")
    parser.add_argument("--seqlen", type=int, default=2048)
    parser.add_argument("--nsamples", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main():
    options = parse()
    if not os.environ.get("QALIB_PYTHON") and Path(sys.prefix).resolve() != VENV.resolve():
        run_in_environment()
    if options.setup:
        for name in PACKAGES:
            package(name)
        return 0
    out = sys.stdout.buffer
    try:
        header, rows = make_rows(options)
    except Refused as refused:
        out.write(json.dumps({"status": refused.status, "error": str(refused)}).encode() + b"\n")
        return refused.status
    except OSError as error:
        out.write(json.dumps({"status": 74, "error": str(error)}).encode() + b"\n")
        return 74
    out.write(json.dumps(header).encode() + b"\n")
    out.write(rows.tobytes())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
