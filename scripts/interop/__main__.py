"""The comparison of scripts/interop.sh: DIR NAME...  Every name is a quantized directory, NAME.dense its weights in 16 bits; gguf/NAME are
directories with a GGUF file, stats a statistics store of the demo model."""
import contextlib
import importlib
import json
import logging
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import runtime

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
SUFFIXES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def find_version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def once_rounded(weights, exact):
    """A reader that multiplies in float16 must come to the exact products rounded once; those then go on."""
    import torch

    for name, w in exact.items():
        if not torch.equal(weights[name].to(torch.float32), w.to(torch.float16).to(torch.float32)):
            raise AssertionError(f"{name} is not (code - zero) * scale in float16")
    return {**weights, **exact}


def compare(weights, reference):
    """The reference holds the weights rounded to 16 bits."""
    import torch

    wrong, largest = 0, 0.0
    for name, expected in reference.items():
        if not name.endswith(tuple(s + ".weight" for s in SUFFIXES)):
            continue
        w = weights[name].to(torch.float32)
        if w.shape != expected.shape:
            return f"DIFFERS: {name} has shape {tuple(w.shape)}"
        wrong += int((w.to(expected.dtype) != expected).sum())
        largest = max(largest, float((w - expected.to(torch.float32)).abs().max()))
    return "every weight agrees" if wrong == 0 else f"DIFFERS: {wrong} weights, by at most {largest:g}"


def by_model(path, quantization=None, dtype="float32"):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    extra = {"quantization_config": quantization} if quantization else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype), device_map="cpu", **extra)
    return {name: tensor for name, tensor in model.state_dict().items()}


def compressed(path):
    import formulas
    from transformers import CompressedTensorsConfig

    return once_rounded(by_model(path, CompressedTensorsConfig(run_compressed=False)), formulas.compressed(path))


def fine_grained(path):
    from transformers import FineGrainedFP8Config

    return by_model(path, FineGrainedFP8Config(weight_block_size=(128, 128), dequantize=True))


def four_bits(path):
    import bitsandbytes.functional as functional
    import torch
    from safetensors.torch import load_file

    tensors, weights = load_file(path / "model.safetensors"), {}
    for name in [n for n in tensors if n.endswith(".quant_state.bitsandbytes__nf4")]:
        weight = name[: -len(".quant_state.bitsandbytes__nf4")]
        parts = {n[len(weight) + 1 :]: t for n, t in tensors.items() if n.startswith(weight + ".")}
        state = functional.QuantState.from_dict(parts, device=torch.device("cpu"))
        state.dtype = torch.float32
        weights[weight] = functional.dequantize_4bit(tensors[weight], state)
    return weights


def gptq_model(path):
    """What GPTQModel's torch kernels for the CPU multiply with: the product of the identity."""
    import formulas
    import torch

    method = json.loads((path / "config.json").read_text())["quantization_config"]["quant_method"]
    model = runtime_of(method, path, torch.float16)
    with torch.inference_mode():
        weights = {
            name + ".weight": module(torch.eye(module.in_features, dtype=torch.float16)).T.to(torch.float32)
            for name, module in model.named_modules()
            if hasattr(module, "qweight")
        }
    return once_rounded(weights, getattr(formulas, method)(path))


READERS = {
    "compressed-tensors": ("compressed-tensors", compressed),
    "fp8": ("transformers", fine_grained),
    "bitsandbytes": ("bitsandbytes", four_bits),
    "gptq": ("gptqmodel", gptq_model),
    "awq": ("gptqmodel", gptq_model),
}


def container(path):
    """The reference reader of the container itself: every tensor, its bytes."""
    from safetensors import safe_open

    with safe_open(path / "model.safetensors", framework="np") as file:
        count = len(list(file.keys()))
        assert file.metadata().get("format") == "pt"
    return f"{count} tensors listed"


def weights_agree(method, path, dense):
    from safetensors.torch import load_file

    package, read = READERS[method]
    importlib.import_module(package.replace("-", "_"))
    return compare(read(path), load_file(dense / "model.safetensors"))


# ---- GGUF --------------------------------------------------------------------------------------------------------------------

GGUF_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
GGUF_PARTS = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def gguf_source(name):
    stem = name.removesuffix(".weight")
    if stem in GGUF_NAMES:
        return GGUF_NAMES[stem] + ".weight"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{GGUF_PARTS[part]}.weight"


def unpermute(w, heads):
    """The llama architecture of llama.cpp turns neighbours where Hugging Face turns halves."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(w.shape)


def gguf_tensors(path, decoded):
    """Every tensor dequantized by ggml's own Python package, bit for bit what qalib decodes."""
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.numpy import load_file

    reader, truth, kinds = GGUFReader(path), load_file(decoded / "model.safetensors"), set()
    heads = {n: int(reader.fields[f"llama.attention.{k}"].contents()) for n, k in (("attn_q", "head_count"), ("attn_k", "head_count_kv"))}
    for tensor in reader.tensors:
        kinds.add(tensor.tensor_type.name)
        w = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        expected = truth.pop(gguf_source(tensor.name))
        w = w.reshape(expected.shape)
        for part, count in heads.items():
            w = unpermute(w, count) if f".{part}." in tensor.name else w
        if not np.array_equal(w.view(np.uint32), expected.view(np.uint32)):
            return f"DIFFERS: {tensor.name}, by at most {np.abs(w - expected).max():g}"
    return f"every weight of {len(reader.tensors)} tensors agrees ({', '.join(sorted(kinds))})" if not truth else f"DIFFERS: no {min(truth)}"


def gguf_rows(root):
    for directory in sorted((root / "gguf").iterdir()):
        name, path = f"gguf {directory.name}", directory / "model.gguf"
        plain = runtime.decoded(path, root / f"{directory.name}.decoded")
        yield name, "gguf", lambda: gguf_tensors(path, plain)
        if directory.name == "Q4_K_M":
            yield name, "llama_cpp_python", lambda: runtime.tokenizes_alike(path)

        def run():
            model = runtime.load(plain)
            # llama.cpp rounds inputs to 8 bits in blocks of 256 before it multiplies quantized weights, to 16 bits elsewhere.
            return runtime.compare(runtime.llama_cpp(path), lambda ids: runtime.by_transformers(model, ids), path, 0.01, 0.05)

        yield name, "llama_cpp_python", run


# ---- runtimes of quantized directories ------------------------------------------------------------------------------------------


def runtime_of(method, path, dtype=None):
    """How transformers runs a directory on a CPU; the layers of GPTQ and AWQ come from gptqmodel."""
    import torch
    from transformers import CompressedTensorsConfig, FineGrainedFP8Config

    if method in ("gptq", "awq"):
        from gptqmodel import BACKEND, GPTQModel

        return GPTQModel.load(str(path), device="cpu", backend=BACKEND.TORCH, dtype=dtype or torch.bfloat16).model
    if method == "fp8":
        return runtime.load(path, quantization_config=FineGrainedFP8Config(weight_block_size=(128, 128), dequantize=True)).float()
    if method == "compressed-tensors":
        return runtime.load(path, quantization_config=CompressedTensorsConfig(run_compressed=False))
    return runtime.load(path, dtype=torch.float32)


def run_directory(method, path, dense):
    theirs, reference = runtime_of(method, path), runtime.load(dense)
    # In bfloat16, where the runtime has it, a logit is good to 2^-8; inputs stay as they are, so `eval` must not round them either.
    return runtime.compare(
        lambda ids: runtime.by_transformers(theirs, ids), lambda ids: runtime.by_transformers(reference, ids), path, 0.001, 0.01, "--weights-only"
    )


# ---- HDF5 ------------------------------------------------------------------------------------------------------------------------


def store(path):
    """The statistics of the first input, which is the embedding's norm, once more with numpy."""
    import h5py
    import numpy as np
    from safetensors.torch import load_file

    weights = {}
    for shard in sorted((runtime.DEMO / "model").glob("*.safetensors")):
        weights.update(load_file(shard))
    with h5py.File(runtime.DEMO / "demo-calib.h5") as file:
        ids = file["input_ids"][:].ravel()
    x = weights["model.embed_tokens.weight"].float().numpy()[ids].astype(np.float64)
    x *= weights["model.layers.0.input_layernorm.weight"].double().numpy() / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-5)
    with h5py.File(path / "layer-0000.h5") as file:
        site = file["inputs/attn_in"]
        h, sums, count = site["hessian"][:], site["sum_sq"][:], int(site.attrs["count"])
    truth = np.triu(x.T @ x)
    error = np.abs(np.triu(h) - truth).max() / truth.max()
    if count != len(ids) or error > 1e-5 or np.abs(sums / np.square(x).sum(axis=0) - 1).max() > 1e-5:
        return f"DIFFERS: {count} tokens, H by {error:g}"
    return f"H of {count} tokens agrees with numpy's within {error:.1g}"


# ---- the table -----------------------------------------------------------------------------------------------------------------


def print_row(name, package, make):
    """One row; whatever a reader throws is a verdict, what it prints is not."""
    try:
        with contextlib.redirect_stdout(sys.stderr):
            verdict = make()
    except (ImportError, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
        verdict = f"not loaded: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    except AssertionError as error:
        verdict = f"DIFFERS: {error}"
    print(f"| {name} | {package.replace('_', '-')} | {find_version(package)} | {verdict} |", flush=True)
    return verdict.startswith(("DIFFERS", "REFUSED"))


def main():
    root, failed = Path(sys.argv[1]), False
    print("| format | reader | version | verdict |\n|---|---|---|---|")
    for name in sys.argv[2:]:
        path, dense = root / name, root / f"{name}.dense"
        method = json.loads((path / "config.json").read_text())["quantization_config"]["quant_method"]
        failed |= print_row(name, "safetensors", lambda: container(path))
        failed |= print_row(name, READERS[method][0], lambda: weights_agree(method, path, dense))
        package = "gptqmodel" if method in ("gptq", "awq") else "transformers"
        failed |= print_row(name, package, lambda: run_directory(method, path, dense))
    for name, package, make in gguf_rows(root):
        failed |= print_row(name, package, make)
    failed |= print_row("statistics", "h5py", lambda: store(root / "stats"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
