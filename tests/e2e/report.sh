#!/usr/bin/env bash
# What people see of a job: report.json, report.html beside every output, and qalib report over several.
source "$(dirname "$0")/../e2e_lib.sh"

"$build/make_model" "$tmp/model" --layers 2 --rows 8 --seqlen 32 --tokens "$tmp/tokens.h5"
"$qalib" quantize -m "$tmp/model" -o "$tmp/gptq" --method gptq --bits 4 --group-size 32 --calib "$tmp/tokens.h5" >/dev/null 2>&1
"$qalib" quantize -m "$tmp/model" -o "$tmp/list" --scheme W4A16-RTN-g64,NF4 >/dev/null 2>&1
"$qalib" quantize -m "$demo/model" -o "$tmp/list" --scheme Q4_0 --calib "$tmp/tokens.h5" >/dev/null 2>&1
for run in gptq list/W4A16-RTN-g64 list/NF4 list/Q4_0; do
    [ -s "$tmp/$run/report.html" ] || fail "$run has no report.html"
    (cd "$tmp/$run" && grep ' report.html$' SHA256SUMS | sha256sum --check --quiet) || fail "$run: report.html is not what SHA256SUMS says"
done
"$qalib" verify "$tmp/gptq" >/dev/null || fail "verify"
echo ' ' >>"$tmp/list/NF4/report.html"
expect 65 "1 findings" "$qalib" verify "$tmp/list/NF4"
python3 tests/report_page.py "$qalib" "$tmp/gptq" "$tmp/list/W4A16-RTN-g64"

# Every kind of job fits the schema: several rules, blocks, static inputs, a plain checkpoint, one that was killed.
printf 'version: 1\nbits: 3\ngroup_size: 32\noverrides:\n- {match: layers.1.*down, skip: true}\n- {match: o_proj, bits: 8}\n' >"$tmp/rules.yaml"
"$qalib" quantize -m "$tmp/model" -o "$tmp/rules" --recipe "$tmp/rules.yaml" --calib "$tmp/tokens.h5" -f gptq_v2 --json >"$tmp/rules.json" 2>/dev/null
"$qalib" quantize -m "$tmp/model" -o "$tmp/fp" --scheme W4A16-AWQ-g32,W8A8-INT8-static,FP8 --calib "$tmp/tokens.h5" >/dev/null 2>&1
"$qalib" quantize -m "$tmp/model" -o "$tmp/dense" --method rtn --bits 2 --group-size 32 -f dense >/dev/null 2>&1
python3 tests/report_schema.py calib/report.schema.json "$tmp/rules.json" "$tmp"/*/report.json "$tmp"/*/*/report.json
holds "$tmp/rules/report.json" 'len(j["kept_in_16_bits"]) == 1'

# Runs and what eval said about them, in any order; of a GGUF file too.
(
    cd "$tmp"
    "$qalib" eval -m gptq --tokens tokens.h5 --base model --json >gptq.json 2>/dev/null
    "$qalib" eval -m "$PWD/list/Q4_0/model.gguf" --tokens tokens.h5 --json >gguf.json 2>/dev/null
    "$qalib" report gguf.json gptq list/Q4_0/ list/NF4/report.json gptq.json --json >figures.json
    [ ! -e qalib-report.html ] || fail "--json alone wrote a page"
    "$qalib" report gptq list/NF4 >/dev/null 2>&1
    [ -s qalib-report.html ] || fail "no page under its usual name"
)
holds "$tmp/figures.json" '[r["name"] for r in j["runs"]] == ["gptq", "list/Q4_0", "list/NF4"] and j["same_tokens"]'
holds "$tmp/figures.json" "[r['kld_mean'] for r in j['runs']] == [$(json "$tmp/gptq.json" 'j["kld_mean"]'), None, None]"
holds "$tmp/figures.json" "[r['perplexity'] for r in j['runs']] == [$(json "$tmp/gptq.json" 'j["perplexity"]'), $(json "$tmp/gguf.json" 'j["perplexity"]'), None]"

# The daemon serves the page of a job, of several outputs their comparison.
if [ -x "$build/qalibd" ]; then
    mkdir -m 700 "$tmp/state"
    "$build/qalibd" --state "$tmp/state" --socket "$tmp/state/socket" >/dev/null 2>"$tmp/daemon.log" &
    daemon=$!
    for ((i = 0; i < 100; i++)); do "$qalib" jobs --socket "$tmp/state/socket" >/dev/null 2>&1 && break || sleep 0.1; done
    served() { # NAME ARGUMENTS...: submits a job, waits, and fetches its page
        local name=$1 id
        shift
        id=$("$qalib" submit --socket "$tmp/state/socket" -m "$tmp/model" -o "$tmp/$name" "$@" --wait -q 2>/dev/null | head -n 1)
        curl -sf --unix-socket "$tmp/state/socket" "http://q/v1/jobs/$id/report.html" >"$tmp/$name.html" || fail "no page of job $id"
    }
    served one --method rtn --bits 4 --group-size 32
    cmp "$tmp/one.html" "$tmp/one/report.html" || fail "the daemon's page is not the one beside the output"
    served two --scheme NF4,W8A16-RTN-g64
    grep -q "2 runs, compared" "$tmp/two.html" && grep -q W8A16-RTN-g64 "$tmp/two.html" || fail "no comparison of two outputs"
    kill $daemon
    wait $daemon || true
else
    echo "skip: qalibd was not built"
fi

# What is no report leaves one line, a code, and no page.
refuse() { # CODE WORDS ARGUMENTS...
    local code=$1 words=$2
    shift 2
    expect "$code" "$words" "$qalib" report "$@" -o "$tmp/page.html"
    [ "$(grep -c . "$tmp/stderr")" -eq 1 ] || fail "more than one line: $*"
    [ ! -e "$tmp/page.html" ] || fail "a page in spite of $words"
}
mkdir "$tmp/bad"
head -c 500 "$tmp/gptq/report.json" >"$tmp/bad/cut.json"
sed 's/"version": 1,/"version": 7,/' "$tmp/gptq/report.json" >"$tmp/bad/version.json"
sed '/"bits_per_weight"/d' "$tmp/gptq/report.json" >"$tmp/bad/missing.json"
truncate -s 100M "$tmp/bad/huge.json"
refuse 64 "needs RUN..."
refuse 66 "nowhere" "$tmp/nowhere"
refuse 66 "$tmp/bad: no report.json" "$tmp/bad"
refuse 65 "cut.json: line" "$tmp/bad/cut.json"
refuse 65 "version 7 of the report" "$tmp/bad/version.json"
refuse 65 '"bits_per_weight" is missing' "$tmp/bad/missing.json"
refuse 65 "huge.json" "$tmp/bad/huge.json"
refuse 64 "or its report.json" "$tmp/gptq.json"
refuse 78 "evaluates gptq, which is none of the runs given" "$tmp/list/NF4" "$tmp/gptq.json"
refuse 78 "a second evaluation" "$tmp/gptq" "$tmp/gptq.json" "$tmp/gptq.json"
expect 73 "page.html" "$qalib" report "$tmp/gptq" -o "$tmp/nowhere/page.html"
echo "report: pages beside outputs, comparisons, bad input"
