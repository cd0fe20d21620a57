#!/usr/bin/env python3
"""What each scheme costs in quality: quantizes a model by every scheme, evaluates, prints a Markdown table and draws a picture.

    scripts/quality.py [--model DIR] [--calib TOKENS] [--eval TOKENS] [--schemes A,B] [--qalib PROGRAM] [--svg FILE]

Defaults: the demo model and its token files, all schemes, build/qalib.  Bits: of the quantized weights with their scales, from
report.json.  Seconds: of all processors together, for a job of this scheme alone.  KL divergence to the original in nats, mean over tokens.
"""
import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(options, *words):
    done = subprocess.run([options.qalib, *words, "--json"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"quality: qalib {' '.join(words)}: exit {done.returncode}\n{done.stderr}")
    return json.loads(done.stdout)


def processor_seconds():
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def output_of(folder):
    files = sorted(folder.glob("*.gguf"))
    return files[0] if files else folder


def measure(options, scheme, folder):
    name = scheme["name"]
    began = processor_seconds()
    run(options, "quantize", "-m", options.model, "-o", str(folder), "--scheme", name, "--calib", options.calib, "--quiet")
    seconds = processor_seconds() - began
    path = output_of(folder / name)
    bits = json.loads((folder / name / "report.json").read_text())["bits_per_quantized_weight"]
    size = sum(f.stat().st_size for f in (folder / name).iterdir() if f.suffix in (".safetensors", ".gguf"))
    found = run(options, "eval", "-m", str(path), "--tokens", options.eval, "--base", options.model, "--quiet")
    print(f"| {name} | {bits:.2f} | {size / 1e6:.2f} | {found['perplexity']:.3f} | {found['kld_mean']:.5f} | "
          f"{100 * found['top1_agreement']:.1f} % | {seconds:.1f} |", flush=True)
    return {"name": name, "format": scheme["format"], "bits": bits, "kld": found["kld_mean"]}


# ---- the picture: bits against KL divergence, logarithmic --------------------------------------------------------------------

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 520, 70, 20, 20, 50
COLOURS = ["#3366cc", "#dc3912", "#109618", "#990099", "#b8860b", "#0099c6", "#555555"]


def axes(points):
    low = math.floor(math.log10(min(p["kld"] for p in points)))
    high = math.ceil(math.log10(max(p["kld"] for p in points)))
    first, last = math.floor(min(p["bits"] for p in points)), math.ceil(max(p["bits"] for p in points)) + 0.5

    def place(bits, kld):
        x = LEFT + (bits - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        y = TOP + (high - math.log10(kld)) / (high - low) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)
    lines = []
    for decade in range(low, high + 1):
        x, y = place(first, 10.0 ** decade)
        lines.append(f'<path d="M{x} {y}H{WIDTH - RIGHT}" stroke="#8884"/><text x="{x - 6}" y="{y + 4}" text-anchor="end">{10.0 ** decade:g}</text>')
    for bits in range(first, int(last) + 1):
        x, y = place(bits, 10.0 ** low)
        lines.append(f'<path d="M{x} {y}V{TOP}" stroke="#8884"/><text x="{x}" y="{y + 18}" text-anchor="middle">{bits}</text>')
    lines.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 8}" text-anchor="middle">bits per quantized weight</text>'
                 f'<text transform="translate(16 {HEIGHT / 2}) rotate(-90)" text-anchor="middle">mean KL divergence, nats</text>')
    return place, lines


def label(name, x, y, colour, taken):
    """Beside its point where nothing else is, as near as it goes; a point in a crowd has its name when it is pointed at."""
    width = 6.2 * len(name)
    for drop in (0, -12, 12, -24, 24, -36, 36, -48, 48):
        for side, left in (("start", x + 9), ("end", x - 9 - width)):
            box = (left, y + drop - 6, left + width, y + drop + 6)
            inside = LEFT < box[0] and box[2] < WIDTH - RIGHT and TOP < box[1] and box[3] < HEIGHT - BOTTOM
            if not inside or any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
                continue
            taken.append(box)
            at = left if side == "start" else left + width
            line = f'<path d="M{x} {y}L{at} {y + drop}" stroke="{colour}" stroke-width="0.5"/>' if abs(drop) > 12 else ""
            return f'{line}<text x="{at:.1f}" y="{y + drop + 4:.1f}" text-anchor="{side}" fill="{colour}">{name}</text>'
    return ""


def draw(points, path):
    points = [p for p in points if p["kld"] > 1e-7]  # a logarithm has no place for what loses nothing
    place, lines = axes(points)
    formats = sorted({p["format"] for p in points})
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in (place(p["bits"], p["kld"]) for p in points)]
    for p in sorted(points, key=lambda p: p["kld"]):
        x, y = place(p["bits"], p["kld"])
        colour = COLOURS[formats.index(p["format"]) % len(COLOURS)]
        lines.append(f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"><title>{p["name"]}</title></circle>' + label(p["name"], x, y, colour, taken))
    for i, name in enumerate(formats):
        lines.append(f'<text x="{WIDTH - RIGHT - 4}" y="{TOP + 14 + 16 * i}" text-anchor="end" '
                     f'fill="{COLOURS[i % len(COLOURS)]}">&#9679; {name}</text>')
    body = "\n".join(lines)
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="11" '
                    f'fill="#777">\n<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>\n{body}\n</svg>\n')


def parse():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=str(ROOT / "demo/model"))
    parser.add_argument("--calib", default=str(ROOT / "demo/demo-calib.h5"))
    parser.add_argument("--eval", default=str(ROOT / "demo/demo-eval.h5"))
    parser.add_argument("--schemes", help="names, separated by commas (default: all)")
    parser.add_argument("--qalib", default=str(ROOT / "build/qalib"))
    parser.add_argument("--svg", type=Path)
    return parser.parse_args()


def main():
    options = parse()
    schemes = run(options, "schemes")
    if options.schemes:
        wanted = options.schemes.split(",")
        schemes = [s for s in schemes if s["name"] in wanted]
        missing = set(wanted) - {s["name"] for s in schemes}
        if missing:
            sys.exit(f"quality: no scheme {', '.join(sorted(missing))}; see qalib schemes")
    print("| scheme | bits | MB | perplexity | mean KL | top-1 agreement | processor s |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        points = [measure(options, s, Path(folder) / s["name"]) for s in schemes]
    if options.svg:
        draw(points, options.svg)


if __name__ == "__main__":
    main()
