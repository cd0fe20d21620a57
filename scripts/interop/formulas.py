"""Weights of packed files straight from the formats' documentation, in float32: DIR -> {module.weight: [N][K]}.  Runtimes multiply in float16,
so theirs must be these rounded once."""
import json

import torch
from safetensors.torch import load_file


def lanes(words, bits):
    """[..., 32 / bits] codes of each word, the lowest bits first."""
    return words.to(torch.int64).unsqueeze(-1) >> torch.arange(32 // bits) * bits & (1 << bits) - 1


def compressed(path):
    """pack-quantized: words along the inputs, zero points along the outputs."""
    tensors, weights = load_file(path / "model.safetensors"), {}
    for name in [n for n in tensors if n.endswith(".weight_packed")]:
        module = name[: -len("_packed")]
        rows, columns = tensors[module + "_shape"].tolist()
        bits = tensors[name].shape[1] * 32 // columns
        codes = lanes(tensors[name], bits).reshape(rows, columns)
        scale = tensors[module + "_scale"].to(torch.float32)
        zero = torch.full(scale.shape, 1 << bits - 1)
        if module + "_zero_point" in tensors:
            zero = lanes(tensors[module + "_zero_point"], bits).transpose(1, 2).reshape(scale.shape)
        spread = columns // scale.shape[1]
        weights[module] = (codes - zero.repeat_interleave(spread, 1)) * scale.repeat_interleave(spread, 1)
    return weights


def gptq(path):
    """Words of qweight along the inputs, of qzeros along the outputs; version 1 stores zero points less one."""
    config = json.loads((path / "config.json").read_text())["quantization_config"]
    tensors, weights, bits = load_file(path / "model.safetensors"), {}, config["bits"]
    for name in [n for n in tensors if n.endswith(".qweight")]:
        module = name[: -len(".qweight")]
        scale, group = tensors[module + ".scales"].to(torch.float32), tensors[module + ".g_idx"].long()
        codes = lanes(tensors[name], bits).transpose(1, 2).reshape(-1, scale.shape[1])
        zero = lanes(tensors[module + ".qzeros"], bits).reshape(scale.shape) + (config["checkpoint_format"] == "gptq")
        weights[module + ".weight"] = ((codes - zero[group]) * scale[group]).T
    return weights


def awq(path):
    """Outputs 0 .. 7 of a word in the order 0, 2, 4, 6, 1, 3, 5, 7."""
    tensors, weights = load_file(path / "model.safetensors"), {}
    lane = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    for name in [n for n in tensors if n.endswith(".qweight")]:
        module = name[: -len(".qweight")]
        scale = tensors[module + ".scales"].to(torch.float32)
        codes = lanes(tensors[name], 4)[..., lane].reshape(-1, scale.shape[1])
        zero = lanes(tensors[module + ".qzeros"], 4)[..., lane].reshape(scale.shape)
        spread = codes.shape[0] // scale.shape[0]
        weights[module + ".weight"] = ((codes - zero.repeat_interleave(spread, 0)) * scale.repeat_interleave(spread, 0)).T
    return weights
