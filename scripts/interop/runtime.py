"""Other people's runtimes on the same tokens: perplexity and logits, for scripts/interop.sh.

Ours: the perplexity of `qalib eval`, and as logits those of transformers in float32 with the very weights that qalib decodes (build/dump_weights,
rows of which other readers confirm bit for bit).
"""
import json
import math
import os
import subprocess
from pathlib import Path

DEMO = Path("demo")
TOKENS = DEMO / "demo-eval.h5"
BUILD = Path(os.environ.get("QALIB_BUILD", "build"))


def rows():
    import h5py

    with h5py.File(TOKENS) as file:
        return [ids[:n].tolist() for ids, n in zip(file["input_ids"][:], file["length"][:])]


def ours(path, options):
    """qalib's own perplexity of a model or a GGUF file."""
    command = [os.environ.get("QALIB", "build/qalib"), "eval", "-m", str(path), "--tokens", str(TOKENS), "--json", *options]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["perplexity"]


def decoded(path, out):
    """The weights as qalib decodes them, as a plain checkpoint in float32 beside the demo model's config."""
    out.mkdir(exist_ok=True)
    subprocess.run([BUILD / "dump_weights", path, out / "model.safetensors"], check=True)
    config = json.loads((DEMO / "model" / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32", "dtype": "float32"}))
    return out


def by_transformers(model, ids):
    import torch

    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def load(path, **options):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options.setdefault("dtype", torch.float32)
    return transformers.AutoModelForCausalLM.from_pretrained(path, device_map="cpu", **options).eval()


def nll(logits, ids):
    """Mean negative log-likelihood of each token after the first, in float64; number of them."""
    import numpy as np

    x = logits[:-1].astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    picked = x[np.arange(len(ids) - 1), ids[1:]]
    return float((np.log(np.exp(x).sum(axis=1)) - picked).sum()), len(ids) - 1


def compare(runtime, reference, path, most_perplexity, most_logits, *options):
    """runtime, reference: ids -> logits [n][vocab]; options: of `eval`.  The limits are those of the runtime's arithmetic."""
    import numpy as np

    sums = [0.0, 0]
    error = norm = 0.0
    for ids in rows():
        theirs, truth = runtime(ids), reference(ids)
        loss, count = nll(theirs, ids)
        sums[0] += loss
        sums[1] += count
        truth = truth - truth.mean(axis=1, keepdims=True)
        theirs = theirs - theirs.mean(axis=1, keepdims=True)
        error += float(np.square(theirs - truth, dtype=np.float64).sum())
        norm += float(np.square(truth, dtype=np.float64).sum())
    perplexity, mine, distance = math.exp(sums[0] / sums[1]), ours(path, options), math.sqrt(error / norm)
    verdict = f"perplexity {perplexity:.3f}, `eval` {mine:.3f}; logits within {100 * distance:.2g} %"
    agrees = abs(perplexity / mine - 1) <= most_perplexity and distance <= most_logits
    return verdict if agrees else "DIFFERS: " + verdict


def silence():
    """llama.cpp keeps the function that it logs through, so this module does."""
    import ctypes

    import llama_cpp

    global no_log
    no_log = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(no_log, ctypes.c_void_p(0))


def llama_cpp(path):
    """ids -> logits of every token, each row from an empty cache.  One thread: the model is small."""
    import llama_cpp
    import numpy as np

    llama_cpp.llama_backend_init()
    silence()
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise RuntimeError("llama.cpp does not load it")
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads, params.n_threads_batch = 512, 512, 512, 1, 1
    context = llama_cpp.llama_init_from_model(model, params)
    vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(512, 0, 1)

    def logits(ids):
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        if llama_cpp.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        flat = llama_cpp.llama_get_logits(context)
        return np.ctypeslib.as_array(flat, shape=(len(ids), vocab)).copy()

    logits.keep = (model, context, batch)  # freed with the process
    return logits


def tokenizes_alike(path):
    """llama.cpp's tokens of some sentences, from the vocabulary in the GGUF file, against SentencePiece with the checkpoint's own."""
    import llama_cpp
    import sentencepiece

    silence()
    theirs = llama_cpp.Llama(str(path), vocab_only=True)
    truth = sentencepiece.SentencePieceProcessor(model_file=str(DEMO / "model" / "tokenizer.model"))
    texts = ["The old man looked at the sea.", " Two  spaces, a\ttab\nand a line.", "naïve café — 1234,56 %", "x" * 40]
    wrong = [t for t in texts if theirs.tokenize(t.encode(), add_bos=False) != truth.encode(t)]
    return f"{len(texts)} texts give the same tokens" if not wrong else f"DIFFERS: {wrong[0]!r} is tokenized otherwise"
