#!/usr/bin/env python3
"""Holds a running qalibd to its own document: openapi.py SOCKET JOB DIR.  JOB has succeeded; DIR is for outputs of jobs.

Every operation is called; the status must be one that the document names and the body must fit its schema.  Every field of a job
must be taken, and one that is not in the document must be refused.
"""
import json
import re
import socket
import sys
from urllib.parse import quote

path, job, tmp = sys.argv[1:]


def call(method, target, body=None, headers=()):
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    data = b"" if body is None else json.dumps(body).encode()
    head = [f"{method} {target} HTTP/1.1", "Host: q", "Connection: close", f"Content-Length: {len(data)}", *headers]
    s.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + data)
    answer = b""
    while part := s.recv(65536):
        answer += part
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    return int(head.split()[1]), fields, body


document = json.loads(call("GET", "/v1/openapi.json")[2])
KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def is_type(value, name):
    if name == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if name == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, KINDS[name])


def check(value, schema, where):
    if "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].split("/")[-1]]
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    assert not types or any(is_type(value, t) for t in types), f"{where}: {value!r} is no {types}"
    assert "enum" not in schema or value in schema["enum"], f"{where}: {value!r} is none of {schema['enum']}"
    if isinstance(value, dict):
        for key in schema.get("required", []):
            assert key in value, f"{where}: {key} is missing"
        for key, inner in value.items():
            known = schema.get("properties", {})
            assert key in known or not known, f"{where}: {key} is not in the document"
            if key in known:
                check(inner, known[key], f"{where}.{key}")
    if isinstance(value, list):
        for i, inner in enumerate(value):
            check(inner, schema.get("items", {}), f"{where}[{i}]")


def fits(operation, status, fields, body, where):
    responses = operation["responses"]
    assert str(status) in responses, f"{where}: {status} is not in the document: {body[:200]}"
    content = responses[str(status)].get("content", {})
    kind = fields.get("Content-Type", "").split(";")[0]
    assert (kind in content) if content else not body, f"{where}: {kind} for {status}"
    for name in responses[str(status)].get("headers", {}):
        assert name in fields, f"{where}: no header {name}"
    if kind.endswith("json"):
        check(json.loads(body), content[kind]["schema"], where)


calls = 0
# A queued job of high number, so that actions have something to act on; model and recipe are fine, but it is cancelled at once.
for target, item in document["paths"].items():
    for method, operation in item.items():
        for one in ["01ARZ3NDEKTSV4RRFFQ69G5FAV", job] if "{id}" in target else [""]:
            if method == "delete" and one == job:
                continue
            body = {"model": tmp, "output": f"{tmp}/openapi", "method": "rtn"} if target == "/v1/jobs" and method == "post" else None
            where = f"{method.upper()} {target}"
            fits(operation, *call(method.upper(), target.replace("{id}", one), body), where)
            calls += 1
        for parameter in operation.get("parameters", []):
            if parameter["in"] != "query":
                continue
            good = target.replace("{id}", job)
            value = {"state": "QUEUED", "after": job if target == "/v1/jobs" else "0"}.get(parameter["name"], "1")
            status, fields, body = call(method.upper(), f"{good}?{parameter['name']}={value}")
            assert status == 200, f"{where}: {parameter['name']}={value}: {body}"
            status, fields, body = call(method.upper(), f"{good}?{parameter['name']}={quote('%s')}")
            assert status == 400, f"{where}: {parameter['name']}=%s: {status}"
            fits(operation, status, fields, body, where)
            assert call(method.upper(), f"{good}?nonsense=1")[0] == 400
            calls += 3

samples = {"string": "x", "integer": 1, "number": 0.5, "boolean": True}
for name, schema in document["components"]["schemas"]["Spec"]["properties"].items():
    wrong = {"model": "/m", "output": "/o", name: {"no": "object"}}
    status, _, body = call("POST", "/v1/jobs", wrong)
    assert status == 400 and f'\\"{name}\\"' in body.decode(), f"{name}: {status} {body}"
    assert "unknown" not in body.decode(), f"{name} is in the document, but the daemon does not know it"
status, _, body = call("POST", "/v1/jobs", {})
known = set(re.findall(r"[a-z_]+", json.dumps(document["components"]["schemas"]["Spec"]["properties"])))
print(f"openapi: {calls} calls fit the document")
