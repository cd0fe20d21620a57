#!/usr/bin/env python3
"""qalib bench and what torch offers for the same work, on the same shapes in the same run: one joined table.

    perf/peers.py --op w4a16,int8,fp8 --model llama-3-70b --m 1,16,64 [--qalib build/qalib] [--json FILE]

Any option of `qalib bench` may be given; --peers is added, so cuBLASLt (or OpenBLAS) is in the table too.  The protocol is that of qalib
bench: random data, weights rotated out of the caches, a CUDA graph per repeat, medians with quantiles.  torch runs after qalib, not in
turns with it: differences below the spread say nothing.  Without torch: qalib's columns and one line that says so.
"""
import argparse
import json
import math
import subprocess
import sys
import time

REPEATS, REPEAT_SECONDS, WARM_SECONDS, COLD_CACHES = 20, 2e-3, 0.2, 3


def import_torch():
    try:
        import torch
        return torch
    except ImportError:
        return None


# ---- the peers: each makes what it needs for one copy of the weight and returns the call ------------------------------------


def matmul(torch, device, r):
    x = torch.randn(r["m"], r["k"], device=device, dtype=torch.bfloat16)
    return lambda: (lambda w: (lambda: x @ w.t()))(torch.randn(r["n"], r["k"], device=device, dtype=torch.bfloat16))


def weight_int4(torch, device, r):
    """tinygemm: BF16 x 4 bits with a scale and a zero point per group of 128."""
    x = torch.randn(r["m"], r["k"], device=device, dtype=torch.bfloat16)

    def make():
        pairs = torch.randint(0, 256, (r["n"], r["k"] // 2), device=device, dtype=torch.uint8)
        packed = torch._convert_weight_to_int4pack(pairs, 8)
        scales = torch.rand(r["k"] // 128, r["n"], 2, device=device).mul(0.01).to(torch.bfloat16)
        return lambda: torch._weight_int4pack_mm(x, packed, 128, scales)
    return make


def int_mm(torch, device, r):
    """INT8 to INT32, then the scales; torch names no algorithm to cuBLASLt."""
    if r["m"] <= 16:
        raise ValueError("torch._int_mm needs more than 16 rows")
    x = torch.randint(-128, 127, (r["m"], r["k"]), device=device, dtype=torch.int8)
    a, b = torch.rand(r["m"], 1, device=device), torch.rand(1, r["n"], device=device)

    def make():
        w = torch.randint(-128, 127, (r["n"], r["k"]), device=device, dtype=torch.int8)
        return lambda: (torch._int_mm(x, w.t()) * a * b).to(torch.bfloat16)
    return make


def scaled_mm(torch, device, r):
    x = torch.randn(r["m"], r["k"], device=device).to(torch.float8_e4m3fn)
    a, b = torch.rand(r["m"], 1, device=device), torch.rand(1, r["n"], device=device)

    def make():
        w = torch.randn(r["n"], r["k"], device=device).to(torch.float8_e4m3fn)
        return lambda: torch._scaled_mm(x, w.t(), scale_a=a, scale_b=b, out_dtype=torch.bfloat16, use_fast_accum=False)
    return make


def gram(torch, device, r):
    def make():
        x = torch.randn(r["m"], r["k"], device=device, dtype=torch.bfloat16)
        return lambda: x.t() @ x
    return make


def cholesky(torch, device, r):
    """What GPTQ as published does: H, its inverse, the factor of that."""
    x = torch.randn(r["k"], r["k"], device=device)
    h = x.t() @ x + torch.eye(r["k"], device=device)
    return lambda: lambda: torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)


def gptq(torch, device, r):
    """The loop as users run it: 128 columns at a time, one after the other, on grids found beforehand (4 bits, groups of 128)."""
    n, k = r["n"], r["k"]
    w = torch.randn(n, k, device=device)
    upper = torch.triu(torch.randn(k, k, device=device)).mul(0.01) + torch.eye(k, device=device)
    scale = torch.rand(n, math.ceil(k / 128), device=device) * 0.1 + 0.1

    def run():
        rest = w.clone()
        for first in range(0, k, 128):
            last = min(first + 128, k)
            block, errors = rest[:, first:last].clone(), torch.empty(n, last - first, device=device)
            u = upper[first:last, first:last]
            s = scale[:, first // 128]
            for i in range(last - first):
                q = s * torch.clamp(torch.round(block[:, i] / s), -8, 7)
                errors[:, i] = (block[:, i] - q) / u[i, i]
                block[:, i:] -= errors[:, i:i + 1] * u[i, i:]
            rest[:, last:] -= errors @ upper[first:last, last:]
        return rest
    return lambda: run


def sdpa(torch, device, r):
    heads, kv, d = r["heads"]
    q = torch.randn(1, heads, r["m"], d, device=device, dtype=torch.bfloat16)
    attention = torch.nn.functional.scaled_dot_product_attention

    def make():
        k, v = (torch.randn(1, kv, r["m"], d, device=device, dtype=torch.bfloat16) for _ in range(2))
        return lambda: attention(q, k, v, is_causal=True, enable_gqa=True)
    return make


PEERS = {
    "dense": [("matmul", matmul)],
    "w4a16": [("int4pack", weight_int4), ("matmul", matmul)],
    "int8": [("_int_mm", int_mm)],
    "fp8": [("_scaled_mm", scaled_mm)],
    "gemm": [("matmul bf16", matmul)],
    "hessian": [("X'X bf16", gram)],
    "factor": [("chol inv chol", cholesky)],
    "gptq": [("eager loop", gptq)],
    "attention": [("sdpa", sdpa)],
}


# ---- the clock ------------------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self, torch, device):
        self.torch, self.is_cuda = torch, device == "cuda"
        self.cache = torch.cuda.get_device_properties(0).L2_cache_size if self.is_cuda else 32 << 20

    def sync(self):
        if self.is_cuda:
            self.torch.cuda.synchronize()

    def once(self, calls):
        self.sync()
        begin = time.perf_counter()
        for call in calls:
            call()
        self.sync()
        return time.perf_counter() - begin

    def replay(self, calls):
        """A function that runs all calls and returns seconds: a graph if one can be captured."""
        torch = self.torch
        if not self.is_cuda:
            return lambda: self.once(calls)
        graph, begin, end = None, torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for call in calls:
                    call()
        except RuntimeError:
            graph = None
            torch.cuda.synchronize()

        def run():
            begin.record()
            if graph:
                graph.replay()
            else:
                for call in calls:
                    call()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) * 1e-3
        return run

    def measure(self, make, weight_bytes):
        copies = max(1, min(64, math.ceil(COLD_CACHES * self.cache / weight_bytes)))
        calls = [make() for _ in range(copies)]
        self.once(calls[:1])
        each = self.once(calls[:1])
        if each < REPEAT_SECONDS:
            calls = calls * math.ceil(REPEAT_SECONDS / max(each, 1e-6) / copies)
        run, begin = self.replay(calls), time.perf_counter()
        while run() >= 0 and time.perf_counter() - begin < WARM_SECONDS:
            pass
        times = sorted(run() / len(calls) for _ in range(REPEATS if each < 0.2 else 3))
        at = lambda q: times[int(q * (len(times) - 1) + 0.5)]
        return {"median_s": at(0.5), "p10_s": at(0.1), "p90_s": at(0.9)}


# ---- the table --------------------------------------------------------------------------------------------------------------------


def heads_of(result):
    """"64/8 heads of 128" """
    first, _, _, d = result["plan"].split()
    heads, kv = first.split("/")
    return int(heads), int(kv), int(d)


def add_peers(torch, device, results):
    clock = Clock(torch, device)
    for r in results:
        shape = {"m": r["m"], "n": r["n"], "k": r["k"]}
        if r["op"] == "attention":
            shape["heads"] = heads_of(r)
        r["torch"] = {}
        for name, peer in PEERS.get(r["op"], []):
            try:
                with torch.inference_mode():
                    r["torch"][name] = clock.measure(peer(torch, device, shape), max(r["bytes"], 1))
            except (RuntimeError, ValueError, NotImplementedError, AttributeError) as error:
                r["torch"][name] = {"refused": str(error).split("\n")[0][:100]}
            if device == "cuda":
                torch.cuda.empty_cache()


def print_table(results):
    print(f"{'operation':12} {'m':>6} {'n':>6} {'k':>6} {'qalib us':>12} {'roof':>5}   {'peer':24} {'us':>12} {'times':>7}")
    for r in results:
        own = r["own"]["median_s"]
        head = f"{r['op']:12} {r['m'] or '':>6} {r['n'] or '':>6} {r['k'] or '':>6} {own * 1e6:12.2f} {100 * r['roof']:4.0f}%   "
        lines = []
        if "peer" in r:
            mark = "" if r["differs"] else "~"
            lines.append(f"{r['peer_plan']:24} {r['peer']['median_s'] * 1e6:12.2f} {r['speedup']:7.2f}{mark}")
        for name, t in r.get("torch", {}).items():
            if "refused" in t:
                lines.append(f"torch {name:18} {'-':>12}         {t['refused']}")
                continue
            overlap = t["p10_s"] <= r["own"]["p90_s"] and r["own"]["p10_s"] <= t["p90_s"]
            lines.append(f"torch {name:18} {t['median_s'] * 1e6:12.2f} {t['median_s'] / own:7.2f}{'~' if overlap else ''}")
        for i, line in enumerate(lines or [""]):
            print((head if i == 0 else " " * len(head)) + line)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--qalib", default="build/qalib")
    parser.add_argument("--json", help="also save the joined results")
    options, rest = parser.parse_known_args()
    done = subprocess.run([options.qalib, "bench", "--peers", "--json", "--progress", "none", *rest], stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(done.returncode)
    document = json.loads(done.stdout)
    torch = import_torch()
    if torch is None:
        print("peers: no torch here: qalib and the library alone")
    else:
        device = "cuda" if "compute capability" in document["device"] and torch.cuda.is_available() else "cpu"
        document["torch"] = {"version": torch.__version__, "device": device}
        add_peers(torch, device, document["results"])
    print(document["device"])
    print_table(document["results"])
    if options.json:
        with open(options.json, "w") as out:
            json.dump(document, out, indent=1)


if __name__ == "__main__":
    main()
