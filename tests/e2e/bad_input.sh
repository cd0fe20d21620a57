#!/usr/bin/env bash
# Bad input through the real program (rows P and D3, C8, C10, U1, U2 of tests/FAULTS.md): one clear line, the documented exit
# code, nothing written, no hang.  The parsers have their own tests with many more cases.
source "$(dirname "$0")/../e2e_lib.sh"

make() { "$build/make_model" "$@"; }
out=$tmp/nothing
tokens=$tmp/tokens.h5
make "$tmp/good" --tokens "$tokens" --rows 4

# refuse CODE WORDS COMMAND...: expect, within 5 s, exactly one line on stderr, and no output directory, work directory or store.
refuse() {
    local code=$1 words=$2
    shift 2
    expect "$code" "$words" timeout 5 "$@"
    [ "$(wc -l <"$tmp/stderr")" -eq 1 ] || { cat "$tmp/stderr" >&2; fail "not one line: $*"; }
    [ ! -e "$out" ] && [ ! -e "$out.work" ] || { ls -R "$out"* >&2; fail "something was written: $*"; }
}

# every CODE WORDS MODEL: the commands that read weights or their headers.
every() {
    local code=$1 words=$2 model=$3
    refuse "$code" "$words" "$qalib" quantize -m "$model" -o "$out" --group-size 32 --calib "$tokens" --progress none
    refuse "$code" "$words" "$qalib" eval -m "$model" --tokens "$tokens" --progress none
    refuse "$code" "$words" "$qalib" calibrate -m "$model" --calib "$tokens" -w "$out" --progress none
    refuse "$code" "$words" "$qalib" generate -m "$model" --ids 1,2 --progress none
    refuse "$code" "$words" "$qalib" inspect "$model"
}

# fresh [OPTIONS]: an undamaged model in $m.
fresh() {
    m=$tmp/model
    rm -rf "$m"
    make "$m" "$@"
}

# ---- P10, P12: shards and index ------------------------------------------------------------------------------------------
fresh --shards 2
truncate -s -1 "$m/model-00002-of-00002.safetensors"
every 65 model-00002-of-00002.safetensors "$m"
truncate -s +2 "$m/model-00002-of-00002.safetensors"
every 65 model-00002-of-00002.safetensors "$m"
rm "$m/model-00002-of-00002.safetensors"
every 66 model-00002-of-00002.safetensors "$m"
mkfifo "$m/model-00002-of-00002.safetensors"
every 65 model-00002-of-00002.safetensors "$m"
rm "$m/model-00002-of-00002.safetensors"
mkdir "$m/model-00002-of-00002.safetensors"
every 65 model-00002-of-00002.safetensors "$m"
for escape in ../../etc/passwd /etc/passwd; do
    fresh --shards 2
    sed -i "s#model-00002-of-00002.safetensors#$escape#" "$m/model.safetensors.index.json"
    every 65 "$escape" "$m"
done
fresh --shards 2
cp "$m/model-00002-of-00002.safetensors" "$tmp/outside.safetensors"
ln -sf ../outside.safetensors "$m/model-00002-of-00002.safetensors"
every 65 model-00002-of-00002.safetensors "$m"

# ---- P16: other files under this name ------------------------------------------------------------------------------------
printf 'PK\003\004pickle and more' >"$tmp/zip"
printf '\200\002}q\000X\001\000\000\000' >"$tmp/pickle"
printf '\177ELF\002\001\001\000\000\000\000\000\000' >"$tmp/elf"
printf '<!DOCTYPE html><html><body>404</body></html>' >"$tmp/html"
printf 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n' >"$tmp/lfs"
for kind in zip:zip pickle:pickle elf:ELF html:HTML lfs:LFS; do
    fresh
    cp "$tmp/${kind%:*}" "$m/model.safetensors"
    every 65 "${kind#*:}" "$m"
done
fresh
rm "$m/model.safetensors"
touch "$m/pytorch_model.bin"
every 65 "Python pickle" "$m"

# ---- P13: config.json ----------------------------------------------------------------------------------------------------
# config KEY VALUE CODE WORDS
config() {
    fresh
    python3 - "$m/config.json" "$1" "$2" <<'END'
import json, sys
path, key, value = sys.argv[1:]
j = json.load(open(path))
j[key] = json.loads(value)
json.dump(j, open(path, "w"))
END
    refuse "$3" "$4" "$qalib" quantize -m "$m" -o "$out" --group-size 32 --calib "$tokens"
    refuse "$3" "$4" "$qalib" eval -m "$m" --tokens "$tokens"
    refuse "$3" "$4" "$qalib" calibrate -m "$m" --calib "$tokens" -w "$out"
    refuse "$3" "$4" "$qalib" plan -m "$m"
}
config hidden_size 0 65 hidden_size
config hidden_size -1 65 hidden_size
config hidden_size 1000000000000 65 hidden_size
config hidden_size 1e3 65 hidden_size
config num_hidden_layers 1000000000 65 num_hidden_layers
config num_attention_heads '"four"' 65 num_attention_heads
config num_key_value_heads 3 65 "key-value heads"
config model_type '"mamba"' 78 mamba
config model_type '"mixtral"' 78 mixtral
config hidden_act '"gelu"' 78 hidden_act
config quantization_config '{"quant_method": "quip", "bits": 4}' 78 quant
fresh
rm "$m/config.json"
every 66 config.json "$m"

# Quantizing twice; the packed model is input of eval, inspect and verify only.
"$qalib" quantize -m "$tmp/good" -o "$tmp/packed" --method rtn --group-size 32 --progress none >/dev/null
refuse 78 "quantized" "$qalib" quantize -m "$tmp/packed" -o "$out" --method rtn --group-size 32
refuse 78 "quantized" "$qalib" calibrate -m "$tmp/packed" --calib "$tokens" -w "$out"
refuse 78 "quantized" "$qalib" plan -m "$tmp/packed"

# ---- P1, P14: header and JSON --------------------------------------------------------------------------------------------
fresh
printf '\377\377\377\377\377\377\377\377{}' >"$m/model.safetensors"
every 65 "header" "$m"
fresh
python3 -c 'print("[" * 100000)' >"$m/config.json"
every 65 "nested deeper" "$m"
echo '{"model_type": "llama", "model_type": "llama"}' >"$m/config.json"
every 65 "duplicate" "$m"

# ---- P15: recipes --------------------------------------------------------------------------------------------------------
# recipe CODE WORDS, the text on stdin
recipe() {
    cat >"$tmp/recipe.yaml"
    refuse "$1" "$2" "$qalib" quantize -m "$tmp/good" -o "$out" --recipe "$tmp/recipe.yaml" --calib "$tokens"
    refuse "$1" "$2" "$qalib" plan -m "$tmp/good" --recipe "$tmp/recipe.yaml"
}
recipe 78 'did you mean "group_size"' <<<'group_sise: 32'
recipe 78 'bits' <<<'bits: many'
recipe 78 'anchor' <<<$'method: &a rtn\nscheme: *a'
recipe 78 'given twice' <<<$'bits: 4\nbits: 3'
python3 -c 'print("a: " + "[" * 10000)' | recipe 78 'recipe.yaml'
refuse 66 missing.yaml "$qalib" plan -m "$tmp/good" --recipe "$tmp/missing.yaml"

# ---- P18: tokens ---------------------------------------------------------------------------------------------------------
# tokens_are CODE WORDS FILE
tokens_are() {
    refuse "$1" "$2" "$qalib" quantize -m "$tmp/good" -o "$out" --group-size 32 --calib "$3"
    refuse "$1" "$2" "$qalib" calibrate -m "$tmp/good" --calib "$3" -w "$out"
    refuse "$1" "$2" "$qalib" eval -m "$tmp/good" --tokens "$3"
}
tokens_are 65 "vocab" "$demo/demo-calib.h5" # of another model: 4,096 ids against 96
head -c 1000 "$tokens" >"$tmp/cut.h5"
tokens_are 65 cut.h5 "$tmp/cut.h5"
: >"$tmp/empty.h5"
tokens_are 65 empty.h5 "$tmp/empty.h5"
tokens_are 66 none.h5 "$tmp/none.h5"
make "$tmp/scrap" --rows 1 --seqlen 1 --tokens "$tmp/one.h5"
refuse 65 one.h5 "$qalib" eval -m "$tmp/good" --tokens "$tmp/one.h5"
# Ragged: row 2 of 64 tokens claims more or fewer.
for length in 65 63 -1; do
    make "$tmp/scrap" --rows 4 --claim $length --tokens "$tmp/ragged.h5"
    tokens_are 65 "row 2" "$tmp/ragged.h5"
done
mkdir "$tmp/named"
echo '{"model": {}}' >"$tmp/named/tokenizer.json"
make "$tmp/named" --tokens "$tmp/named.h5" --rows 4
"$qalib" eval -m "$tmp/named" --tokens "$tmp/named.h5" --progress none >/dev/null
echo '{"model": []}' >"$tmp/named/tokenizer.json"
hash=$(sha256sum "$tmp/named/tokenizer.json")
for command in "quantize -o $out --group-size 32 --calib" "calibrate -w $out --calib" "eval --tokens"; do
    refuse 65 "the model has ${hash:0:12}..." "$qalib" ${command%% *} -m "$tmp/named" ${command#* } "$tmp/named.h5"
done

# ---- P17: HDF5 with tricks: statistics and tokens -------------------------------------------------------------------------
"$qalib" calibrate -m "$tmp/good" --calib "$tokens" -w "$tmp/store" --progress none >/dev/null
layer=layer-0000.h5
# stats_are WORDS: a run from the store in $tmp/bad, whose first layer is not as it should be.  Layers are read when their turn comes, so
# the work directory is there already, without a layer in it.
stats_are() {
    rm -rf "$out.work"
    expect 65 "$1" timeout 5 "$qalib" quantize -m "$tmp/good" -o "$out" --group-size 32 --stats "$tmp/bad" --progress none
    grep -qF "$layer" "$tmp/stderr" && [ "$(wc -l <"$tmp/stderr")" -eq 1 ] || { cat "$tmp/stderr" >&2; fail "not one line about $layer"; }
    [ ! -e "$out" ] && ! ls "$out.work"/layer-* 2>/dev/null || { ls -R "$out"* >&2; fail "something was made of $1"; }
    rm -rf "$out.work"
}
for trick in $("$build/spoil_h5"); do
    rm -rf "$tmp/bad" && cp -r "$tmp/store" "$tmp/bad" && cp "$tokens" "$tmp/bad.h5"
    "$build/spoil_h5" "$tmp/bad/$layer" /inputs/attn_in/hessian "$tmp/store/$layer" "$trick"
    stats_are hessian
    "$build/spoil_h5" "$tmp/bad.h5" /input_ids "$tokens" "$trick"
    refuse 65 input_ids "$qalib" quantize -m "$tmp/good" -o "$out" --group-size 32 --calib "$tmp/bad.h5"
done
truncate -s -1000 "$tmp/bad/$layer"
stats_are "$layer"
: >"$tmp/bad/$layer"
stats_are "not an HDF5 file"

# ---- P20: GGUF --------------------------------------------------------------------------------------------------------------
for kind in "version2:model.gguf" "twice:twice" "total:behind the end" "alignment:general.architecture" "array_count:array" "unpadded:model.gguf"; do
    cp "$(dirname "$0")/../fuzz/corpus/gguf/${kind%%:*}" "$tmp/model.gguf"
    refuse 65 "${kind#*:}" "$qalib" eval -m "$tmp/model.gguf" --tokens "$tokens"
done
head -c 20 "$tmp/model.gguf" >"$tmp/cut.gguf"
for command in inspect "eval --tokens $tokens -m"; do
    # shellcheck disable=SC2086 # words
    refuse 65 cut.gguf "$qalib" $command "$tmp/cut.gguf"
done

# ---- C8: a flipped bit in a committed layer ------------------------------------------------------------------------------
make "$tmp/slow" --layers 8 --rows 128 --tokens "$tmp/slow.h5"
job=("$qalib" quantize -m "$tmp/slow" -o "$tmp/flipped" --group-size 32 --calib "$tmp/slow.h5" --progress none)
"${job[@]}" -w "$tmp/unhurt" >/dev/null 2>&1
mv "$tmp/flipped" "$tmp/whole"
"${job[@]}" -w "$tmp/work" >/dev/null 2>&1 &
pid=$!
until [ "$(grep -c '"layer"' "$tmp/work/journal.jsonl" 2>/dev/null)" -ge 2 ] 2>/dev/null; do sleep 0.02; done
kill -TERM $pid
wait $pid && fail "the job ended before the signal"
layer=$(ls "$tmp"/work/layer-* | head -n 1)
python3 -c 'import sys; f = open(sys.argv[1], "r+b"); f.seek(5000); b = f.read(1); f.seek(5000); f.write(bytes([b[0] ^ 1]))' "$layer"
code=0
"${job[@]}" -w "$tmp/work" --resume >/dev/null 2>"$tmp/stderr" || code=$?
case $code in
0) same_files "$tmp/whole" "$tmp/flipped" ;;
65) grep -qF "$(basename "$layer")" "$tmp/stderr" || fail "a damaged layer that is not named" ;;
*) cat "$tmp/stderr" >&2; fail "exit code $code for a damaged layer" ;;
esac

# ---- C10: two processes, one directory -----------------------------------------------------------------------------------
"$qalib" quantize -m "$tmp/slow" -o "$tmp/first" -w "$tmp/shared" --group-size 32 --calib "$tmp/slow.h5" --progress none >/dev/null &
first=$!
for _ in $(seq 200); do [ -e "$tmp/shared/journal.jsonl" ] && break; sleep 0.02; done
expect 73 "process $first" "$qalib" quantize -m "$tmp/slow" -o "$tmp/second" -w "$tmp/shared" --group-size 32 --calib "$tmp/slow.h5" --resume
kill -TERM $first 2>/dev/null || true
wait $first || true

# ---- D3: output directories ----------------------------------------------------------------------------------------------
job=("$qalib" quantize -m "$tmp/good" --method rtn --group-size 32 --progress none)
mkdir "$tmp/full"
echo mine >"$tmp/full/file"
refuse 73 "$tmp/full" "${job[@]}" -o "$tmp/full"
[ "$(ls -A "$tmp/full")" = file ] || fail "a directory in use was changed"
refuse 73 "$tmp/full/file" "${job[@]}" -o "$tmp/full/file"
long=$tmp/$(printf 'x%.0s' $(seq 4096))
code=0
timeout 5 "${job[@]}" -o "$long" >/dev/null 2>"$tmp/stderr" || code=$?
case $code in 64 | 73 | 74) ;; *) cat "$tmp/stderr" >&2; fail "exit code $code for a path of 4096 bytes" ;; esac
odd=$tmp/$'out\xff\n'
"${job[@]}" -o "$odd" >/dev/null 2>&1 && "$qalib" verify "$odd" >/dev/null || fail "a directory name that is not UTF-8"
odd=$tmp/$'model\xff'
ln -s "$tmp/good" "$odd"
refuse 64 "is not UTF-8, as the reports that name the model are" "$qalib" quantize -m "$odd" --method rtn --group-size 32 -o "$tmp/never"
# on_mount NAME SETUP: the output lies on what SETUP mounts on "$mounted", in a mount namespace, which cleans up behind itself.
own=(unshare -m)
[ "$(id -u)" -eq 0 ] || own=(unshare -rm)
on_mount() {
    local code=0
    export qalib tmp mounted=$tmp/mounted setup=$2
    rm -rf "$mounted" "$tmp/copied"
    mkdir "$mounted"
    "${own[@]}" bash -c 'eval "$setup" || exit 99
        "$qalib" quantize -m "$tmp/good" -o "$mounted/out" --method rtn --group-size 32 --progress none &&
        "$qalib" verify "$mounted/out" && cp -r "$mounted/out" "$tmp/copied" || exit 98' >/dev/null 2>"$tmp/stderr" || code=$?
    case $code in
    0) same_files "$tmp/packed" "$tmp/copied" ;;
    98) cat "$tmp/stderr" >&2; fail "output on $1" ;;
    *) echo "skipped: no $1 can be mounted here: $(tail -n 1 "$tmp/stderr")" ;;
    esac
}
on_mount ramfs 'mount -t ramfs none "$mounted"' # neither fallocate nor a size
on_mount FAT '/sbin/mkfs.vfat -C "$tmp/image" 102400 && mount -o loop "$tmp/image" "$mounted"' # no links, coarse times
if [ "$(id -u)" -ne 0 ]; then
    mkdir -m 555 "$tmp/readonly"
    refuse 77 "$tmp/readonly" "${job[@]}" -o "$tmp/readonly/out"
else
    echo "skipped: root may write to read-only directories"
fi

# ---- verify: a damaged output is 65 with a line for each finding, a missing one 66 -----------------------------------------
refuse 66 nowhere "$qalib" verify "$tmp/nowhere"
python3 -c 'import sys; f = open(sys.argv[1], "r+b"); f.seek(-1, 2); b = f.read(1); f.seek(-1, 2); f.write(bytes([b[0] ^ 1]))' "$tmp/packed/model.safetensors"
expect 65 model.safetensors "$qalib" verify "$tmp/packed"
for kind in zip pickle elf html lfs; do
    cp "$tmp/$kind" "$tmp/packed/model.safetensors"
    expect 65 model.safetensors timeout 5 "$qalib" verify "$tmp/packed"
done

# ---- U1: every code that was seen here is in --help ------------------------------------------------------------------------
"$qalib" --help >"$tmp/help"
for code in 0 64 65 66 69 70 71 73 74 75 77 78 130 143; do
    grep -qE "^ +$code " "$tmp/help" || fail "exit code $code is not in --help"
done
for command in quantize calibrate eval generate tokenize stats plan inspect verify export doctor bench; do
    grep -qE "^  $command " "$tmp/help" || fail "$command is not in --help"
    "$qalib" $command --help >"$tmp/help.$command"
    grep -q '^Examples:$' "$tmp/help.$command" || [ $command = doctor ] || fail "no example for $command"
done
# The examples are commands that parse: every option in them is in the help text of its command.
for command in quantize calibrate eval generate stats plan inspect verify export bench; do
    { grep -E "^  qalib $command " "$tmp/help.$command" || true; } | grep -oE -- ' --?[a-z][a-z-]*' | sort -u | while read -r option; do
        grep -qE -- "^ +(-., )?$option( |\$)|^ +$option, " "$tmp/help.$command" || fail "$option in an example of $command"
    done
done

# ---- U2: streams, terminals, locales ---------------------------------------------------------------------------------------
"$qalib" inspect "$tmp/good" >&- 2>"$tmp/stderr" || [ $? -eq 74 ] || fail "closed stdout"
"$qalib" --help | head -1 >/dev/null || fail "EPIPE"
"$qalib" inspect "$demo/model" | head -1 >/dev/null || fail "EPIPE"
expect 74 "standard output" bash -c '"$1" --help >/dev/full' - "$qalib"
LC_ALL=C "$qalib" inspect "$tmp/good" --stats >"$tmp/c"
LC_ALL=de_DE.UTF-8 "$qalib" inspect "$tmp/good" --stats >"$tmp/de"
cmp "$tmp/c" "$tmp/de" || fail "numbers depend on the locale"
COLUMNS=40 "$qalib" --help >"$tmp/narrow"
[ "$(sed '/^Examples:/,$d' "$tmp/narrow" | wc -L)" -le 40 ] || fail "40 columns"
# A terminal: no escape sequence with TERM=dumb or NO_COLOR.
for setting in TERM=dumb NO_COLOR=1; do
    rm -rf "$tmp/tty"
    env $setting script -qec "'$qalib' quantize -m '$tmp/good' -o '$tmp/tty' --group-size 32 --calib '$tokens'" /dev/null >"$tmp/screen" </dev/null || fail "$setting"
    if [ $setting = TERM=dumb ]; then
        ! grep -q $'\033' "$tmp/screen" || fail "escape sequences with $setting"
    else
        ! grep -qE $'\033\\[[0-9;]*m' "$tmp/screen" || fail "colours with $setting"
    fi
    rm -rf "$tmp/tty.work"
done
echo "bad input: refused in one line, nothing written"
