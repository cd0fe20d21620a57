"""The comparison of scripts/interop.sh: DIR NAME...  Every name is a quantized directory, NAME.dense its weights in 16 bits."""
import importlib
import json
import logging
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
SUFFIXES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def find_version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "-"


def packed_formula(path):
    """pack-quantized, straight from the documentation: (code - zero) * scale in float32, one Linear after the other."""
    import torch
    from safetensors.torch import load_file

    tensors, weights = load_file(path / "model.safetensors"), {}
    for name in [n for n in tensors if n.endswith(".weight_packed")]:
        module = name[: -len("_packed")]
        rows, columns = tensors[module + "_shape"].tolist()
        bits = tensors[name].shape[1] * 32 // columns
        shifts = torch.arange(32 // bits) * bits
        unpack = lambda words: words.to(torch.int64).unsqueeze(-1) >> shifts & (1 << bits) - 1
        codes = unpack(tensors[name]).reshape(rows, columns)
        scale = tensors[module + "_scale"].to(torch.float32)
        zero = torch.full(scale.shape, 1 << bits - 1)
        if module + "_zero_point" in tensors:
            zero = unpack(tensors[module + "_zero_point"]).transpose(1, 2).reshape(scale.shape)
        spread = columns // scale.shape[1]
        weights[module] = (codes - zero.repeat_interleave(spread, 1)) * scale.repeat_interleave(spread, 1)
    return weights


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
    import torch
    from transformers import CompressedTensorsConfig

    weights = by_model(path, CompressedTensorsConfig(run_compressed=False))
    # Packed weights are multiplied in the type of their scales, float16: that is compared here, what is exact goes on.
    for name, exact in packed_formula(path).items():
        if not torch.equal(weights[name].to(torch.float32), exact.to(torch.float16).to(torch.float32)):
            raise AssertionError(f"{name} is not (code - zero) * scale in float16")
        weights[name] = exact
    return weights


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
    """GPTQModel's own unpacking on the CPU: what its torch kernel multiplies with."""
    import torch
    from gptqmodel import BACKEND, GPTQModel

    model = GPTQModel.load(str(path), device="cpu", backend=BACKEND.TORCH).model
    return {
        name + ".weight": module.dequantize_weight().T.to(torch.float32)
        for name, module in model.named_modules()
        if hasattr(module, "dequantize_weight")
    }


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


def attempt(reader, path, reference):
    package, load = READERS[reader]
    try:
        importlib.import_module(package.replace("-", "_"))
    except Exception as error:
        return package, f"not loaded: {package} cannot be imported ({type(error).__name__})"
    try:
        return package, compare(load(path), reference)
    except AssertionError as error:
        return package, f"DIFFERS: {error}"
    except Exception as error:  # whatever a reader throws is a verdict
        return package, f"not loaded: {type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"


def main():
    root, failed = Path(sys.argv[1]), False
    print("| format | reader | version | verdict |\n|---|---|---|---|")
    for name in sys.argv[2:]:
        path = root / name
        method = json.loads((path / "config.json").read_text())["quantization_config"]["quant_method"]
        try:
            verdict = container(path)
        except Exception as error:
            verdict, failed = f"REFUSED: {error}", True
        print(f"| {name} | safetensors | {find_version('safetensors')} | {verdict} |")
        try:
            from safetensors.torch import load_file

            reference = load_file(root / f"{name}.dense" / "model.safetensors")
            package, verdict = attempt(method, path, reference)
        except ImportError as error:
            package, verdict = READERS[method][0], f"not loaded: {error}"
        failed |= verdict.startswith("DIFFERS")
        print(f"| {name} | {package} | {find_version(package)} | {verdict} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
