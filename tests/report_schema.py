#!/usr/bin/env python3
"""Holds reports to calib/report.schema.json: report_schema.py SCHEMA REPORT...  Every report must fit; and spoiled in any one place, none may.

Spoiled are: each value by one of a type that is nowhere right, each field that must be there by its absence, each object by a field that
nobody knows (but for the recipe, which calib/recipe.h describes and which may grow).
"""
import copy
import json
import sys

from jsonschema import Draft202012Validator

schema_path, *paths = sys.argv[1:]
schema = json.load(open(schema_path))
Draft202012Validator.check_schema(schema)
schema = Draft202012Validator(schema)
OPTIONAL = {"stored", "importance", "mix"}  # whose absence is no damage in itself
spoiled = 0


def must_fail(report, what):
    global spoiled
    spoiled += 1
    assert not schema.is_valid(report), f"the schema takes {what}"


def places(value, path=()):
    """Paths to every value; of lists the first two entries and the last."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], path + (key,))
    if isinstance(value, list):
        for i in sorted({0, 1, len(value) - 1} & set(range(len(value)))):
            yield from places(value[i], path + (i,))


def at(report, path):
    for key in path:
        report = report[key]
    return report


def spoil(report):
    known = set(schema.schema["properties"]["recipe"]["required"])
    for path in places(report):
        if path[:2] == ("recipe", "overrides") and len(path) > 2:
            continue
        in_recipe = path[:1] == ("recipe",)
        if path:
            wrong = copy.deepcopy(report)
            at(wrong, path[:-1])[path[-1]] = [] if isinstance(at(report, path), dict) else {"no": "value"}
            must_fail(wrong, f"{path} of another type")
        if path and isinstance(path[-1], str) and path[-1] not in OPTIONAL and (not in_recipe or len(path) < 2 or path[-1] in known):
            wrong = copy.deepcopy(report)
            del at(wrong, path[:-1])[path[-1]]
            must_fail(wrong, f"no {path}")
        if isinstance(at(report, path), dict) and not in_recipe:
            wrong = copy.deepcopy(report)
            at(wrong, path)["nobody"] = 1
            must_fail(wrong, f"an unknown field in {path}")


for path in paths:
    report = json.load(open(path))
    errors = [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in schema.iter_errors(report)]
    assert not errors, f"{path}: {errors}"
    spoil(report)
print(f"schema: {len(paths)} reports fit, {spoiled} spoiled ones do not")
