#!/usr/bin/env python3
"""The first layer of a model as a model of its own, in two shards: trim_model.py FROM TO.  For what needs a tokenizer and real shapes, quickly."""
import json
import os
import shutil
import struct
import sys

source, target = sys.argv[1:]
os.makedirs(target, exist_ok=True)
tensors = {}
for name in sorted(os.listdir(source)):
    if name.endswith(".safetensors"):
        with open(f"{source}/{name}", "rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            for key, entry in json.loads(f.read(length)).items():
                if key == "__metadata__" or (".layers." in key and ".layers.0." not in key):
                    continue
                begin, end = entry["data_offsets"]
                place = f.tell()
                f.seek(8 + length + begin)
                tensors[key] = (entry["dtype"], entry["shape"], f.read(end - begin))
                f.seek(place)
    elif name == "config.json":
        config = json.load(open(f"{source}/{name}"))
        config["num_hidden_layers"] = 1
        json.dump(config, open(f"{target}/{name}", "w"), indent=2)
    elif not name.endswith(".index.json"):
        shutil.copy(f"{source}/{name}", target)

where = {}
for shard in range(2):
    header, body = {}, b""
    file = f"model-{shard + 1:05d}-of-00002.safetensors"
    for key in sorted(tensors)[shard::2]:
        dtype, shape, data = tensors[key]
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        where[key] = file
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(f"{target}/{file}", "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + body)
total = sum(len(data) for _, _, data in tensors.values())
json.dump({"metadata": {"total_size": total}, "weight_map": where}, open(f"{target}/model.safetensors.index.json", "w"), indent=2)
