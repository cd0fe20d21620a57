/* bitsandbytes checkpoints with NF4 and double quantization, the tensors of one module.  E = N * K weights in row-major order make
 * B = ceil(E / 64) blocks, which cross the ends of rows:
 *
 *   <module>.weight.quant_map           F32 [16]             the NF4 table
 *   <module>.weight.nested_absmax       F32 [ceil(B/256)]
 *   <module>.weight.nested_quant_map    F32 [256]            the values of the bytes of absmax
 *   <module>.weight                     U8 [ceil(E/2)][1]    two codes a byte, the first one in the HIGH half
 *   <module>.weight.absmax              U8 [B]
 *   <module>.weight.quant_state.bitsandbytes__nf4   U8, a JSON text
 *
 *   block maximum = nested_quant_map[absmax[b]] * nested_absmax[b / 256] + nested_offset,   weight = quant_map[code] * block maximum
 *
 * Spaces behind the JSON bring a module to whole words, so that what follows it is aligned.
 */
#include <math.h>
#include <string.h>

#include "formats/json.h"
#include "formats/layout_parts.h"
#include "host/mat.h"
#include "host/nf4.h"

enum { NESTED_BLOCK = 256, MAP_SIZE = 256, STATE_LENGTH = 256, STATE_LIMIT = 1 << 16 };

enum { QUANT_MAP, NESTED, NESTED_MAP, WEIGHT, ABSMAX, STATE, TENSORS };
static const char *const suffixes[TENSORS + 1] = {"weight.quant_map",        "weight.nested_absmax",
                                                  "weight.nested_quant_map", "weight",
                                                  "weight.absmax",           "weight.quant_state.bitsandbytes__nf4"};

/* ---- the scales of the scales ------------------------------------------------------------------------------------------------ */

/* The signed dynamic map: in each decade 10^(i-6) .. 10^(i-5) the middles of 2^i equal parts, both signs, then 0 and 1; sorted. */
static void make_map(float map[MAP_SIZE]) {
    int n = 0;
    for (int i = 6; i >= 0; i--)
        for (int j = (1 << i) - 1; j >= 0; j--) {
            double middle = 0.1 + 0.9 * (j + 0.5) / (1 << i);
            map[n] = (float)(-middle * pow(10, i - 6));
            map[MAP_SIZE - 2 - n] = -map[n];
            n++;
        }
    map[n] = 0;
    map[MAP_SIZE - 1] = 1;
}

static uint8_t nearest_in_map(const float map[MAP_SIZE], float x) {
    int low = 0, high = MAP_SIZE - 1; /* map[low] <= x <= map[high], or x beyond an end */
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (map[middle] <= x) low = middle;
        else high = middle;
    }
    return (uint8_t)(x - map[low] <= map[high] - x ? low : high);
}

static void restore(const qmodule *q, const float map[MAP_SIZE]) {
    int64_t blocks = qmodule_scales(q), parts = ql_ceil_div(blocks, NESTED_BLOCK);
    for (int64_t b = 0; b < blocks; b++) {
        float product = map[q->absmax[b]] * q->nested[b / NESTED_BLOCK];
        q->scale[b] = product + q->nested[parts]; /* two roundings, as readers have them */
    }
}

ql_status qmodule_nest(qmodule *q, ql_arena *arena) {
    float map[MAP_SIZE];
    double sum = 0;
    int64_t blocks = qmodule_scales(q), parts = ql_ceil_div(blocks, NESTED_BLOCK);
    make_map(map);
    QL_TRY(ql_take(arena, (size_t)blocks, 1, &q->absmax));
    QL_TRY(ql_take(arena, (size_t)parts + 1, sizeof *q->nested, &q->nested));
    for (int64_t b = 0; b < blocks; b++) sum += (double)q->scale[b];
    float offset = q->nested[parts] = (float)(sum / (double)blocks);
    for (int64_t b = 0; b < blocks; b++)
        q->nested[b / NESTED_BLOCK] = fmaxf(q->nested[b / NESTED_BLOCK], fabsf(q->scale[b] - offset));
    for (int64_t b = 0; b < blocks; b++) {
        float most = q->nested[b / NESTED_BLOCK];
        q->absmax[b] = nearest_in_map(map, most > 0 ? (q->scale[b] - offset) / most : 0);
    }
    restore(q, map);
    return QL_OK;
}

/* ---- one module -------------------------------------------------------------------------------------------------------------- */

static const char *obstacle(const layout_scheme *scheme, int64_t n, int64_t k, layout_rule rule, ql_arena *arena) {
    (void)scheme;
    char *reason = NULL;
    ql_status status = QL_OK;
    if (rule.bits != 4 || rule.group != QL_NF4_BLOCK)
        status = ql_arena_format(arena, &reason, "%d bits in groups of %lld; NF4 has 4 in blocks of 64", rule.bits,
                                 (long long)rule.group);
    else if (n <= 0 || k <= 0 || n * k % 2 != 0)
        status = ql_arena_format(arena, &reason, "N = %lld times K = %lld is odd", (long long)n, (long long)k);
    return status == QL_OK ? reason : "no memory to say why";
}

static void describe(const qmodule *q, st_tensor tensor[TENSORS]) {
    int64_t blocks = qmodule_scales(q), parts = ql_ceil_div(blocks, NESTED_BLOCK), bytes = q->n * q->k / 2;
    tensor[QUANT_MAP] = layout_tensor(QL_F32, 16, 0);
    tensor[NESTED] = layout_tensor(QL_F32, parts, 0);
    tensor[NESTED_MAP] = layout_tensor(QL_F32, MAP_SIZE, 0);
    tensor[WEIGHT] = layout_tensor(QL_U8, bytes, 1);
    tensor[ABSMAX] = layout_tensor(QL_U8, blocks, 0);
    tensor[STATE] = layout_tensor(QL_U8, STATE_LENGTH + (8 - (4 * parts + bytes + blocks) % 8) % 8, 0);
}

static ql_status write_state(const layout_scheme *scheme, const qmodule *q, char *state, size_t size) {
    char text[STATE_LENGTH];
    float offset = q->nested[ql_ceil_div(qmodule_scales(q), NESTED_BLOCK)];
    int length =
        snprintf(text, sizeof text,
                 "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"%s\", \"shape\": [%lld, %lld], "
                 "\"nested_blocksize\": 256, \"nested_dtype\": \"float32\", \"nested_offset\": %.9g}",
                 scheme->dtype == QL_BF16 ? "bfloat16" : "float16", (long long)q->n, (long long)q->k, (double)offset);
    if (length < 0 || length >= STATE_LENGTH) return ql_fail(QL_INTERNAL, "%s: its state is too long", q->name);
    memset(state, ' ', size);
    memcpy(state, text, (size_t)length);
    return QL_OK;
}

static ql_status encode(const layout_scheme *scheme, const qmodule *q, ql_arena *arena, layout_tensors *out) {
    *out = (layout_tensors){.count = TENSORS};
    describe(q, out->tensor);
    QL_TRY(layout_begin(q, suffixes, arena, out));
    if (!q->codes) return QL_OK;
    if (!q->absmax || !q->nested)
        return ql_fail(QL_MISMATCH, "%s: its block maxima are not quantized with this file's map", q->name);
    uint8_t *weight = out->data[WEIGHT];
    int64_t words = ql_packed_words(q->k, 4);
    for (int64_t i = 0; i < q->n * q->k; i++)
        weight[i / 2] |= (uint8_t)(layout_get_field(q->codes + i / q->k * words, i % q->k, 4) << (i % 2 ? 0 : 4));
    for (int code = 0; code < 16; code++) ((float *)out->data[QUANT_MAP])[code] = ql_nf4_value(code);
    make_map(out->data[NESTED_MAP]);
    memcpy(out->data[NESTED], q->nested, out->tensor[NESTED].size);
    memcpy(out->data[ABSMAX], q->absmax, out->tensor[ABSMAX].size);
    return write_state(scheme, q, out->data[STATE], out->tensor[STATE].size);
}

static ql_status check_state(const qmodule *q, const json_t *state, float *offset) {
    static const char *const keys[] = {"quant_type",       "blocksize",    "dtype",         "shape",
                                       "nested_blocksize", "nested_dtype", "nested_offset", NULL};
    const char *type = "";
    const json_t *shape = json_object_get(state, "shape");
    int64_t block, nested;
    double value;
    char place[256];
    snprintf(place, sizeof place, "%s.%s", q->name, suffixes[STATE]);
    if (!json_is_object(state)) return ql_fail(QL_FORMAT, "%s: is no JSON object", place);
    QL_TRY(ql_json_only_keys(state, place, keys));
    QL_TRY(ql_json_string(state, place, "quant_type", &type));
    QL_TRY(ql_json_int(state, place, "blocksize", 1, 1 << 20, &block));
    QL_TRY(ql_json_int(state, place, "nested_blocksize", 1, 1 << 20, &nested));
    QL_TRY(ql_json_real(state, place, "nested_offset", -3e38, 3e38, &value));
    if (strcmp(type, "nf4") != 0 || block != QL_NF4_BLOCK || nested != NESTED_BLOCK)
        return ql_fail(QL_FORMAT, "%s: quant_type \"%s\" in blocks of %lld and %lld; nf4, 64 and 256 can be read",
                       place, type, (long long)block, (long long)nested);
    if (json_array_size(shape) != 2 || json_integer_value(json_array_get(shape, 0)) != q->n ||
        json_integer_value(json_array_get(shape, 1)) != q->k)
        return ql_fail(QL_FORMAT, "%s: its shape is not [%lld, %lld], which config.json implies", place,
                       (long long)q->n, (long long)q->k);
    *offset = (float)value;
    return QL_OK;
}

static ql_status read_state(const checkpoint *ck, const st_tensor *tensor, ql_arena *arena, const qmodule *q,
                            float *offset) {
    char *text;
    if (tensor->size > STATE_LIMIT)
        return ql_fail(QL_FORMAT, "%s: has %llu bytes", tensor->name, (unsigned long long)tensor->size);
    QL_TRY(layout_read_tensor(ck, tensor, arena, &text));
    json_t *state = json_loadb(text, tensor->size, JSON_REJECT_DUPLICATES, NULL);
    ql_status status = check_state(q, state, offset);
    json_decref(state);
    return status;
}

static ql_status find_tensors(const checkpoint *ck, const qmodule *q, const st_tensor *found[TENSORS]) {
    st_tensor want[TENSORS];
    describe(q, want);
    for (int t = 0; t < TENSORS; t++) {
        found[t] = layout_find(ck, q->name, suffixes[t]);
        if (t == STATE && found[t]) want[t].shape[0] = found[t]->shape[0]; /* a text has any length */
        QL_TRY(layout_check_tensor(q, suffixes[t], &want[t], found[t], ""));
    }
    return QL_OK;
}

/* The table must be that of NF4: others have the same shape. */
static ql_status check_table(const checkpoint *ck, const st_tensor *tensor, const qmodule *q) {
    float table[16];
    QL_TRY(checkpoint_read(ck, tensor, table));
    for (int code = 0; code < 16; code++)
        if (!(fabsf(table[code] - ql_nf4_value(code)) <= 1e-6f))
            return ql_fail(QL_FORMAT, "%s.%s: entry %d is %g, NF4 has %g", q->name, suffixes[QUANT_MAP], code,
                           (double)table[code], (double)ql_nf4_value(code));
    return QL_OK;
}

/* Files of other tools have a map that differs in last places: their maxima are restored with it and cannot be written with ours. */
static ql_status get_scales(const checkpoint *ck, const st_tensor *const found[TENSORS], float offset, ql_arena *arena,
                            qmodule *q) {
    float map[MAP_SIZE], ours[MAP_SIZE];
    int64_t blocks = qmodule_scales(q), parts = ql_ceil_div(blocks, NESTED_BLOCK);
    QL_TRY(ql_take(arena, (size_t)blocks, 1, &q->absmax));
    QL_TRY(ql_take(arena, (size_t)parts + 1, sizeof *q->nested, &q->nested));
    QL_TRY(checkpoint_read(ck, found[ABSMAX], q->absmax));
    QL_TRY(checkpoint_read(ck, found[NESTED], q->nested));
    QL_TRY(checkpoint_read(ck, found[NESTED_MAP], map));
    q->nested[parts] = offset;
    restore(q, map);
    for (int64_t b = 0; b < blocks; b++)
        if (!isfinite(q->scale[b]))
            return ql_fail(QL_FORMAT, "%s: the maximum of block %lld is %g", q->name, (long long)b,
                           (double)q->scale[b]);
    make_map(ours);
    if (memcmp(map, ours, sizeof map) != 0) q->absmax = NULL;
    return QL_OK;
}

static ql_status decode(const checkpoint *ck, const layout_scheme *scheme, ql_arena *arena, qmodule *q) {
    const st_tensor *found[TENSORS];
    uint8_t *weight;
    float offset = 0;
    const char *reason = obstacle(scheme, q->n, q->k, (layout_rule){.bits = q->bits, .group = q->group}, arena);
    if (reason) return ql_fail(QL_FORMAT, "%s: %s", q->name, reason);
    QL_TRY(find_tensors(ck, q, found));
    int64_t words = ql_packed_words(q->k, 4);
    QL_TRY(ql_take(arena, (size_t)(q->n * words), sizeof *q->codes, &q->codes));
    QL_TRY(ql_take(arena, (size_t)qmodule_scales(q), sizeof *q->scale, &q->scale));
    ql_mark scratch = ql_arena_mark(arena);
    QL_TRY(read_state(ck, found[STATE], arena, q, &offset));
    QL_TRY(check_table(ck, found[QUANT_MAP], q));
    QL_TRY(layout_read_tensor(ck, found[WEIGHT], arena, &weight));
    for (int64_t i = 0; i < q->n * q->k; i++)
        layout_put_field(q->codes + i / q->k * words, i % q->k, 4, weight[i / 2] >> (i % 2 ? 0 : 4) & 15);
    ql_arena_release(arena, scratch);
    return get_scales(ck, found, offset, arena, q);
}

/* ---- config.json --------------------------------------------------------------------------------------------------------------- */

static ql_status check(const layout_scheme *s) {
    if (s->type == CODE_NF4 && s->activations == ACTIVATIONS_16 && s->n_overrides == 0) return QL_OK;
    return ql_fail(QL_MISMATCH, "bitsandbytes files hold NF4 alone, beside 16-bit inputs (type nf4)");
}

static ql_status config(const layout_scheme *scheme, json_t **quantization_config) {
    const char *dtype = scheme->dtype == QL_BF16 ? "bfloat16" : "float16";
    json_t *skipped;
    QL_TRY(layout_skipped_list(scheme, "lm_head", false, &skipped));
    *quantization_config =
        json_pack("{s:s, s:b, s:b, s:b, s:b, s:s, s:b, s:s, s:s, s:b, s:b, s:o, s:f}", "quant_method", "bitsandbytes",
                  "load_in_4bit", 1, "load_in_8bit", 0, "_load_in_4bit", 1, "_load_in_8bit", 0, "bnb_4bit_quant_type",
                  "nf4", "bnb_4bit_use_double_quant", 1, "bnb_4bit_compute_dtype", dtype, "bnb_4bit_quant_storage",
                  "uint8", "llm_int8_enable_fp32_cpu_offload", 0, "llm_int8_has_fp16_weight", 0,
                  "llm_int8_skip_modules", skipped, "llm_int8_threshold", 6.0);
    return *quantization_config ? QL_OK : ql_fail(QL_NOMEM, "no memory for quantization_config");
}

static ql_status read_config(const checkpoint *ck, layout_scheme *out) {
    static const char place[] = "quantization_config";
    const json_t *config_in = json_object_get(checkpoint_config(ck), place);
    bool four = false, nested = false;
    const char *type = "fp4", *storage = "uint8";
    QL_TRY(ql_json_bool_or(config_in, place, "load_in_4bit", &four));
    QL_TRY(ql_json_bool_or(config_in, place, "bnb_4bit_use_double_quant", &nested));
    QL_TRY(ql_json_string_or(config_in, place, "bnb_4bit_quant_type", &type));
    QL_TRY(ql_json_string_or(config_in, place, "bnb_4bit_quant_storage", &storage));
    if (!four || !nested || strcmp(type, "nf4") != 0 || strcmp(storage, "uint8") != 0)
        return ql_fail(QL_MISMATCH,
                       "%s: of bitsandbytes files, only NF4 with double quantization and uint8 storage can be read",
                       place);
    *out = (layout_scheme){
        .layout = LAYOUT_BITSANDBYTES, .type = CODE_NF4, .bits = 4, .group = QL_NF4_BLOCK, .symmetric = true};
    return layout_read_list(config_in, "llm_int8_skip_modules", &out->ignored);
}

const layout layout_bitsandbytes = {
    .name = "bitsandbytes",
    .quant_method = "bitsandbytes",
    .marker = "weight.absmax",
    .suffixes = suffixes,
    .check = check,
    .config = config,
    .read = read_config,
    .rule = layout_ignored_rule,
    .obstacle = obstacle,
    .encode = encode,
    .decode = decode,
};
