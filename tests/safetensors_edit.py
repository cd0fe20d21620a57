#!/usr/bin/env python3
"""Sets elements of a tensor: safetensors_edit.py FILE TENSOR PLACE VALUE...   PLACE is all, an element, or ROW: (a whole row).

Without PLACE and VALUE: prints dtype and shape.  For tests that damage a checkpoint at a known place; F32, F16 and BF16.
"""
import json
import struct
import sys


def encode(dtype, value):
    if dtype == "F32":
        return struct.pack("<f", value)
    if dtype == "F16":
        return struct.pack("<e", value)
    return struct.pack("<f", value)[2:]  # BF16, cut


def main():
    path, name, *edits = sys.argv[1:]
    with open(path, "r+b") as f:
        (length,) = struct.unpack("<Q", f.read(8))
        entry = json.loads(f.read(length))[name]
        begin, shape = 8 + length + entry["data_offsets"][0], entry["shape"]
        if not edits:
            print(entry["dtype"], *shape)
        width = len(encode(entry["dtype"], 0.0))
        for place, value in zip(edits[::2], edits[1::2]):
            first, count = 0, 1
            if place == "all":
                for n in shape:
                    count *= n
            elif place.endswith(":"):
                count = shape[-1]
                first = int(place[:-1]) * count
            else:
                first = int(place)
            f.seek(begin + width * first)
            f.write(encode(entry["dtype"], float(value)) * count)


main()
