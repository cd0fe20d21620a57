#!/usr/bin/env python3
"""Plants markup in every string of a report and reads the page with Python's HTML parser: report_page.py QALIB DIR OTHER.

DIR and OTHER hold report.json.  Elements and attributes must be those of the page of harmless strings, and the planted text must be
seen as text.  No file, and no place in the network, may be asked for.
"""
import copy
import html.parser
import json
import os
import subprocess
import sys
import tempfile

qalib, first, second = sys.argv[1:]
HOSTILE = "\"'><script>alert(1)</script><img src=x onerror=\"a\">&lt;b&gt;]]><!-- \u0001\u001b\u007f\u0085\u202e </style></svg></title>"
SEEN = "\"'><script>alert(1)</script><img src=x onerror=\"a\">&lt;b&gt;]]><!-- \u2401\u241b\u2421\ufffd\ufffd </style></svg></title>"
VOID = {"meta", "br", "hr", "img", "input", "link"}
SHAPES = {"circle", "rect", "path"}


class Page(html.parser.HTMLParser):
    """The skeleton: elements with the names of their attributes; the text apart."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.skeleton, self.text, self.values, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.skeleton.append((tag, tuple(sorted(name for name, _ in attrs))))
        self.values += [(name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> in {self.open}"
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")


def plant(value, text, count):
    """Every string, and every key of the recipe, gets `text` behind it."""
    if isinstance(value, str):
        count[0] += 1
        return value + text
    if isinstance(value, list):
        return [plant(v, text, count) for v in value]
    if isinstance(value, dict):
        return {k: plant(v, text, count) for k, v in value.items()}
    return value


def prepared(path, text, count):
    report = json.load(open(f"{path}/report.json"))
    report["layers"][0][0]["fallback"] = "why"
    report["layers"][0][1]["stored"] = "Q4_K"
    report["importance"] = "fp"
    report["kept_in_16_bits"] = ["lm_head"]
    report["recipe"]["overrides"] = [{"match": "down"}]
    planted = plant(copy.deepcopy(report), text, count)
    planted["recipe"][text] = text
    return planted


def page_of(reports, folder):
    paths = []
    for i, report in enumerate(reports):
        paths.append(f"{folder}/run{i}.json")
        json.dump(report, open(paths[-1], "w"))
    subprocess.run([qalib, "report", *paths, "-q", "-o", f"{folder}/page.html"], check=True, stdout=subprocess.DEVNULL)
    return Page(open(f"{folder}/page.html", encoding="utf-8").read())


with tempfile.TemporaryDirectory() as folder:
    for runs in ([first], [first, second]):
        count = [0]
        harmless = page_of([prepared(run, "harmless", [0]) for run in runs], folder)
        hostile = page_of([prepared(run, HOSTILE, count) for run in runs], folder)
        assert hostile.skeleton == harmless.skeleton, "data became markup"
        shown = "".join(hostile.text)
        assert shown.count(SEEN) >= (count[0] if len(runs) == 1 else 4), f"{shown.count(SEEN)} of {count[0]} planted strings are shown"
        assert not {tag for tag, _ in hostile.skeleton} & {"script", "img", "link", "iframe", "object", "a", "form"}
        assert not [v for n, v in hostile.values if n in ("src", "href", "style") or n.startswith("on")]
        for tag in ("h1", "h2", "table", "th", "svg", "title", "desc", "caption"):
            assert any(t == tag for t, _ in hostile.skeleton), f"no <{tag}>"
        charts = [i for i, (tag, names) in enumerate(hostile.skeleton) if tag == "svg" and "role" in names]
        assert charts and all(hostile.skeleton[i + 1][0] == "title" and hostile.skeleton[i + 2][0] == "desc" for i in charts)
        print(f"page: {len(runs)} runs, {count[0]} strings planted, {len(hostile.skeleton)} elements, none from data")

# A file name is data as well.
with tempfile.TemporaryDirectory() as folder:
    name = f"{folder}/<b>&\"'.json"
    json.dump(json.load(open(f"{first}/report.json")), open(name, "w"))
    subprocess.run([qalib, "report", name, "-q", "-o", f"{folder}/page.html"], check=True, stdout=subprocess.DEVNULL)
    page = Page(open(f"{folder}/page.html", encoding="utf-8").read())
    assert not any(tag == "b" for tag, _ in page.skeleton) and os.path.basename(name) in "".join(page.text)
