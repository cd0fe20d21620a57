#!/usr/bin/env bash
# Greedy decoding on the demo model and on its quantized twin: every id is what a pass over all before it ends with.
source "$(dirname "$0")/../e2e_lib.sh"
generate() { "$qalib" generate --device cpu --progress none -q --json "$@"; }

"$qalib" quantize -m "$demo/model" -o "$tmp/out" --method rtn --bits 4 --group-size 64 --progress none -q >/dev/null
for model in "$demo/model" "$tmp/out"; do
    generate -m "$model" --ids 1,15,27 -n 16 >"$tmp/all.json"
    holds "$tmp/all.json" 'len(j["ids"]) == 16 and j["prompt_tokens"] == 3 and j["stopped_by"] == "count"'
    holds "$tmp/all.json" 'j["tokens_per_second"] > 0 and j["decode_seconds"] > 0 and j["bytes_per_second"] > 0'
    for n in 1 2 9 16; do # the ids so far as the prompt, and one more
        prompt=$(json "$tmp/all.json" "','.join(map(str, [1, 15, 27] + j['ids'][:$n - 1]))")
        generate -m "$model" --ids "$prompt" -n 1 >"$tmp/one.json"
        holds "$tmp/one.json" "j['ids'] == [$(json "$tmp/all.json" "j['ids'][$n - 1]")]"
    done
done
# Bytes of a step: packed codes, scales and zero points are an eighth of what F32 weights take, and the head stays.
packed=$(json "$tmp/all.json" 'j["bytes_per_token"]')
generate -m "$demo/model" --ids 1,15,27 -n 16 >"$tmp/dense.json"
holds "$tmp/dense.json" "0.25 < $packed / j['bytes_per_token'] < 0.5"
holds "$tmp/dense.json" 'abs(j["bytes_per_token"] / (4 * (6 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 768 * 256) + 4096 * 256)) - 1) < 0.02'

# The end of a text, and the text form.
end=$(json "$tmp/dense.json" 'j["ids"][3]')
cp -r "$demo/model" "$tmp/ends"
echo "{\"eos_token_id\": [2, $end]}" >"$tmp/ends/generation_config.json"
generate -m "$tmp/ends" --ids 1,15,27 >"$tmp/ended.json"
holds "$tmp/ended.json" "j['ids'][-1] == $end and len(j['ids']) <= 4 and j['stopped_by'] == 'end of text'"
"$qalib" generate --device cpu --progress none -m "$tmp/ends" --ids 1,15,27 | grep -q "^ids .*$end\$" || fail "text"

expect 64 "id 4096 is no token: the vocabulary has 4096" "$qalib" generate --progress none -m "$demo/model" --ids 1,4096
expect 64 "257 positions, the model has 256" "$qalib" generate --progress none -m "$demo/model" --ids 1 -n 256
expect 64 "separated by commas" "$qalib" generate --progress none -m "$demo/model" --ids 1,x
expect 64 "ids" "$qalib" generate --progress none -m "$demo/model"
expect 64 'from 1 to' "$qalib" generate --progress none -m "$demo/model" --ids 1 -n 0
expect 66 "$tmp/nothing" "$qalib" generate --progress none -m "$tmp/nothing" --ids 1
echo '{"eos_token_id": "</s>"}' >"$tmp/ends/generation_config.json"
expect 65 'generation_config.json: "eos_token_id" is a string' "$qalib" generate --progress none -m "$tmp/ends" --ids 1
echo "generate: ids as from scratch, on demo and quantized weights"
