/* GPTQ checkpoints, the tensors of one module.  With b bits, N outputs, K inputs and G groups of inputs:
 *
 *   <module>.qweight  I32 [K*b/32][N]  codes, packed along K
 *   <module>.qzeros   I32 [G][N*b/32]  zero points, packed along N; v1 stores them minus one, v2 as they are
 *   <module>.scales   F16 [G][N]
 *   <module>.g_idx    I32 [K]          group of each input, in the original order of the inputs
 *
 * Packing is a little-endian stream of b-bit fields cut into 32-bit words, which for 2, 4 and 8 bits equals 32/b lanes per word
 * and for 3 bits the 96-bit units of AutoGPTQ.  So qweight is the transpose of the canonical words, and a code cannot
 * damage its neighbour here: it was checked when the stream was made.
 */
#include "formats/layout.h"

#include <stdio.h>
#include <string.h>

#include "host/log.h"
#include "host/mat.h"
#include "host/num.h"

enum { QWEIGHT, QZEROS, SCALES, G_IDX, TENSORS };
static const char *const suffixes[TENSORS] = {"qweight", "qzeros", "scales", "g_idx"};

/* ---- shared by both directions ------------------------------------------------------------------------------------------- */

/* to [cols][rows] = from [rows][cols] transposed.  Tiles of 32 x 32 words keep both sides within the first-level cache. */
static void transpose(const uint32_t *from, int64_t rows, int64_t cols, uint32_t *to) {
    enum { TILE = 32 };
    for (int64_t r0 = 0; r0 < rows; r0 += TILE)
        for (int64_t c0 = 0; c0 < cols; c0 += TILE) {
            int64_t r1 = r0 + TILE < rows ? r0 + TILE : rows, c1 = c0 + TILE < cols ? c0 + TILE : cols;
            for (int64_t c = c0; c < c1; c++)
                for (int64_t r = r0; r < r1; r++) to[c * rows + r] = from[r * cols + c];
        }
}

static void put_field(uint32_t *stream, int64_t i, int bits, uint32_t value) {
    int64_t word = i * bits / 32;
    int shift = (int)(i * bits % 32);
    stream[word] |= value << shift;
    if (shift + bits > 32) stream[word + 1] |= value >> (32 - shift);
}

static uint32_t get_field(const uint32_t *stream, int64_t i, int bits) {
    int64_t word = i * bits / 32;
    int shift = (int)(i * bits % 32);
    uint32_t value = stream[word] >> shift;
    if (shift + bits > 32) value |= stream[word + 1] << (32 - shift);
    return value & ((1u << bits) - 1);
}

/* Shapes and types of the four tensors; names are left to the caller. */
static void describe(int64_t n, int64_t k, int bits, int64_t group, st_tensor tensor[TENSORS]) {
    int64_t groups = ql_groups(k, group);
    tensor[QWEIGHT] = (st_tensor){.dtype = QL_I32, .rank = 2, .shape = {k * bits / 32, n}};
    tensor[QZEROS] = (st_tensor){.dtype = QL_I32, .rank = 2, .shape = {groups, n * bits / 32}};
    tensor[SCALES] = (st_tensor){.dtype = QL_F16, .rank = 2, .shape = {groups, n}};
    tensor[G_IDX] = (st_tensor){.dtype = QL_I32, .rank = 1, .shape = {k}};
    for (int t = 0; t < TENSORS; t++) {
        int64_t count = tensor[t].shape[0] * (tensor[t].rank == 2 ? tensor[t].shape[1] : 1);
        tensor[t].dtype_name = ql_dtype_name(tensor[t].dtype);
        tensor[t].size = (uint64_t)count * ql_dtype_size(tensor[t].dtype);
    }
}

/* Loaders sort the inputs by g_idx and then take `group` of them at a time, so no group may hold more.  With K a multiple of
 * the group size this makes all of them equal. */
static ql_status check_g_idx(ql_status status, const char *module, const int32_t *g_idx, int64_t k, int64_t group,
                             ql_arena *arena) {
    int64_t groups = ql_groups(k, group), *members;
    QL_TRY(ql_take(arena, (size_t)groups, sizeof *members, &members));
    for (int64_t i = 0; i < k; i++) {
        if (g_idx[i] < 0 || g_idx[i] >= groups)
            return ql_fail(status, "%s.g_idx: input %lld has group %d, there are %lld groups", module, (long long)i,
                           g_idx[i], (long long)groups);
        if (++members[g_idx[i]] > group)
            return ql_fail(status, "%s.g_idx: group %d has more members than the group size %lld", module, g_idx[i],
                           (long long)group);
    }
    return QL_OK;
}

const char *layout_gptq_obstacle(int64_t n, int64_t k, int bits, int64_t group, ql_arena *arena) {
    char *reason = NULL;
    ql_status status = QL_OK;
    if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
        status = ql_arena_format(arena, &reason, "%d bits; GPTQ files hold 2, 3, 4 or 8", bits);
    else if (k <= 0 || k % 32 != 0)
        status = ql_arena_format(arena, &reason, "K = %lld is not a multiple of 32", (long long)k);
    else if (n <= 0 || n % 32 != 0)
        status = ql_arena_format(arena, &reason, "N = %lld is not a multiple of 32", (long long)n);
    else if (group != -1 && (group <= 0 || k % group != 0))
        status = ql_arena_format(arena, &reason, "K = %lld is not a multiple of the group size %lld", (long long)k,
                                 (long long)group);
    return status == QL_OK ? reason : "no memory to say why";
}

bool layout_gptq_label_fits(const qmodule *q, int version) {
    int64_t count = q->n * ql_groups(q->k, q->group);
    int middle = 1 << (q->bits - 1), suspect = version == 1 ? middle + 1 : middle - 1;
    for (int64_t i = 0; i < count; i++)
        if (q->zero[i] != suspect) return true;
    return false;
}

/* Zero points of one module tell a wrong label of the whole file: the words of a symmetric grid are a constant pattern. */
ql_status layout_gptq_warn_label(const checkpoint *ck, const layout_scheme *scheme) {
    const st_tensor *tensor = NULL;
    for (int64_t i = 0; i < checkpoint_count(ck) && !tensor; i++) {
        const char *dot = strrchr(checkpoint_at(ck, i)->name, '.');
        if (dot && strcmp(dot + 1, suffixes[QZEROS]) == 0) tensor = checkpoint_at(ck, i);
    }
    if (!tensor || tensor->size == 0) return QL_OK;
    uint32_t pattern[8] = {0}, *words;
    for (int i = 0; i < 32; i++)
        put_field(pattern, i, scheme->bits, (1u << (scheme->bits - 1)) - (scheme->version == 2));
    ql_arena *arena;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = ql_take(arena, tensor->size, 1, &words);
    if (status == QL_OK) status = checkpoint_read(ck, tensor, words);
    bool suspect = status == QL_OK;
    for (uint64_t i = 0; suspect && i < tensor->size / sizeof *words; i++)
        suspect = words[i] == pattern[i % (uint64_t)scheme->bits];
    ql_arena_close(arena);
    if (suspect)
        ql_log(QL_WARNING, "%s: says GPTQ v%d, but its zero points are those of v%d: the label is almost surely wrong",
               checkpoint_dir(ck), scheme->version, 3 - scheme->version);
    return status;
}

/* ---- encoding ------------------------------------------------------------------------------------------------------------ */

static ql_status encode_zeros(const qmodule *q, int version, uint32_t *qzeros) {
    int64_t groups = ql_groups(q->k, q->group), words = q->n * q->bits / 32;
    for (int64_t g = 0; g < groups; g++)
        for (int64_t n = 0; n < q->n; n++) {
            uint32_t zero = q->zero[n * groups + g];
            if (zero >> q->bits)
                return ql_fail(QL_INTERNAL, "%s: zero point %u of output %lld does not fit into %d bits", q->name, zero,
                               (long long)n, q->bits);
            if (version == 1 && zero == 0)
                return ql_fail(QL_MISMATCH,
                               "%s: output %lld, group %lld has the zero point 0, which GPTQ v1 cannot hold; use v2",
                               q->name, (long long)n, (long long)g);
            put_field(qzeros + g * words, n, q->bits, zero - (version == 1));
        }
    return QL_OK;
}

static ql_status encode_scales(const qmodule *q, uint16_t *scales) {
    int64_t groups = ql_groups(q->k, q->group);
    for (int64_t g = 0; g < groups; g++)
        for (int64_t n = 0; n < q->n; n++) {
            float scale = q->scale[n * groups + g];
            uint16_t half = ql_f32_to_f16(scale);
            if (half == 0 || half >= 0x7c00) /* zero, infinite, NaN or negative */
                return ql_fail(QL_MISMATCH, "%s: the scale %g of output %lld, group %lld is not a positive FP16 number",
                               q->name, (double)scale, (long long)n, (long long)g);
            scales[g * q->n + n] = half;
        }
    return QL_OK;
}

static ql_status encode_g_idx(const qmodule *q, ql_arena *arena, int32_t *g_idx) {
    if (q->g_idx) {
        QL_TRY(check_g_idx(QL_INTERNAL, q->name, q->g_idx, q->k, q->group, arena));
        memcpy(g_idx, q->g_idx, (size_t)q->k * sizeof *g_idx);
        return QL_OK;
    }
    for (int64_t k = 0; k < q->k; k++) g_idx[k] = (int32_t)(k / q->group);
    return QL_OK;
}

ql_status layout_gptq_encode(const qmodule *q, int version, ql_arena *arena, layout_tensors *out) {
    const char *obstacle = layout_gptq_obstacle(q->n, q->k, q->bits, q->group, arena);
    if (obstacle) return ql_fail(QL_MISMATCH, "%s: %s", q->name, obstacle);
    *out = (layout_tensors){.count = TENSORS};
    describe(q->n, q->k, q->bits, q->group, out->tensor);
    for (int t = 0; t < TENSORS; t++) {
        char *name;
        QL_TRY(ql_arena_format(arena, &name, "%s.%s", q->name, suffixes[t]));
        out->tensor[t].name = name;
    }
    if (!q->codes) return QL_OK;
    for (int t = 0; t < TENSORS; t++) QL_TRY(ql_arena_take(arena, out->tensor[t].size, 1, &out->data[t]));
    transpose(q->codes, q->n, ql_packed_words(q->k, q->bits), out->data[QWEIGHT]);
    QL_TRY(encode_zeros(q, version, out->data[QZEROS]));
    QL_TRY(encode_scales(q, out->data[SCALES]));
    return encode_g_idx(q, arena, out->data[G_IDX]);
}

/* ---- decoding ------------------------------------------------------------------------------------------------------------ */

static const st_tensor *find(const checkpoint *ck, const char *module, const char *suffix) {
    char name[256];
    int length = snprintf(name, sizeof name, "%s.%s", module, suffix);
    return length > 0 && (size_t)length < sizeof name ? checkpoint_find(ck, name) : NULL;
}

bool layout_gptq_has(const checkpoint *ck, const char *module) { return find(ck, module, suffixes[QWEIGHT]) != NULL; }

/* What the qweight at hand would fit to, as advice for the message. */
static void guess_qweight(const st_tensor *found, int64_t n, int64_t k, char *hint, size_t size) {
    static const int widths[] = {2, 3, 4, 8};
    hint[0] = 0;
    for (size_t i = 0; i < sizeof widths / sizeof *widths; i++) {
        int64_t words = k * widths[i] / 32;
        if (found->shape[0] == words && found->shape[1] == n)
            snprintf(hint, size, " (this would be %d bits)", widths[i]);
        else if (found->shape[0] == n && found->shape[1] == words) snprintf(hint, size, " (stored untransposed?)");
    }
}

static ql_status check_tensor(const char *module, int which, const st_tensor *want, const st_tensor *found, int64_t n,
                              int64_t k, int bits, int64_t group) {
    if (!found) return ql_fail(QL_FORMAT, "%s.%s: missing", module, suffixes[which]);
    bool is_float = found->dtype == QL_F16 || found->dtype == QL_BF16 || found->dtype == QL_F32;
    if (which == SCALES ? !is_float : found->dtype != want->dtype)
        return ql_fail(QL_FORMAT, "%s.%s: is %s, must be %s", module, suffixes[which], found->dtype_name,
                       want->dtype_name);
    if (found->rank == 1 && want->rank == 1 && found->shape[0] == want->shape[0]) return QL_OK;
    if (found->rank != want->rank || want->rank == 1)
        return ql_fail(QL_FORMAT, "%s.%s: rank %d with %lld elements in front, must be rank %d with %lld", module,
                       suffixes[which], found->rank, found->rank ? (long long)found->shape[0] : 1, want->rank,
                       (long long)want->shape[0]);
    if (found->shape[0] == want->shape[0] && found->shape[1] == want->shape[1]) return QL_OK;
    char hint[64] = "";
    if (which == QWEIGHT) guess_qweight(found, n, k, hint, sizeof hint);
    return ql_fail(QL_FORMAT,
                   "%s.%s: is [%lld, %lld], but N = %lld, K = %lld, %d bits and groups of %lld need [%lld, %lld]%s",
                   module, suffixes[which], (long long)found->shape[0], (long long)found->shape[1], (long long)n,
                   (long long)k, bits, (long long)group, (long long)want->shape[0], (long long)want->shape[1], hint);
}

static ql_status decode_weight(const checkpoint *ck, const st_tensor *tensor, ql_arena *arena, qmodule *q) {
    uint32_t *words;
    QL_TRY(ql_take(arena, tensor->size, 1, &words));
    QL_TRY(checkpoint_read(ck, tensor, words));
    transpose(words, ql_packed_words(q->k, q->bits), q->n, q->codes);
    return QL_OK;
}

static ql_status decode_zeros(const checkpoint *ck, const st_tensor *tensor, int version, ql_arena *arena, qmodule *q) {
    uint32_t *words;
    QL_TRY(ql_take(arena, tensor->size, 1, &words));
    QL_TRY(checkpoint_read(ck, tensor, words));
    int64_t groups = ql_groups(q->k, q->group), row = q->n * q->bits / 32;
    for (int64_t g = 0; g < groups; g++)
        for (int64_t n = 0; n < q->n; n++) {
            uint32_t zero = get_field(words + g * row, n, q->bits) + (version == 1);
            if (zero >> q->bits)
                return ql_fail(QL_FORMAT,
                               "%s.qzeros: output %lld, group %lld holds %u, a zero point of 0 in v1, which loaders "
                               "read differently",
                               q->name, (long long)n, (long long)g, zero - 1);
            q->zero[n * groups + g] = (uint8_t)zero;
        }
    return QL_OK;
}

static ql_status decode_scales(const checkpoint *ck, const st_tensor *tensor, ql_arena *arena, qmodule *q) {
    char *raw;
    QL_TRY(ql_take(arena, tensor->size, 1, &raw));
    QL_TRY(checkpoint_read(ck, tensor, raw));
    int64_t groups = ql_groups(q->k, q->group);
    for (int64_t g = 0; g < groups; g++)
        for (int64_t n = 0; n < q->n; n++) {
            int64_t i = g * q->n + n;
            float scale = tensor->dtype == QL_F32    ? ((const float *)raw)[i]
                          : tensor->dtype == QL_BF16 ? ql_bf16_to_f32(((const uint16_t *)raw)[i])
                                                     : ql_f16_to_f32(((const uint16_t *)raw)[i]);
            if (!(scale > 0 && isfinite(scale)))
                return ql_fail(QL_FORMAT, "%s.scales: output %lld, group %lld has the scale %g", q->name, (long long)n,
                               (long long)g, (double)scale);
            q->scale[n * groups + g] = scale;
        }
    return QL_OK;
}

/* Leaves q->g_idx where groups are not simply k / group.  All zeros with several groups is how some tools say "trivial". */
static ql_status decode_g_idx(const checkpoint *ck, const st_tensor *tensor, ql_arena *arena, qmodule *q) {
    QL_TRY(checkpoint_read(ck, tensor, q->g_idx));
    bool trivial = true, all_zero = true;
    for (int64_t k = 0; k < q->k; k++) {
        trivial = trivial && q->g_idx[k] == k / q->group;
        all_zero = all_zero && q->g_idx[k] == 0;
    }
    QL_TRY(trivial || all_zero ? QL_OK : check_g_idx(QL_FORMAT, q->name, q->g_idx, q->k, q->group, arena));
    if (trivial || all_zero) q->g_idx = NULL;
    return QL_OK;
}

/* Type and shape of all four tensors before anything is allocated. */
static ql_status find_tensors(const checkpoint *ck, const layout_scheme *scheme, const qmodule *q,
                              const st_tensor *found[TENSORS]) {
    st_tensor want[TENSORS];
    describe(q->n, q->k, q->bits, q->group, want);
    for (int t = 0; t < TENSORS; t++) {
        found[t] = find(ck, q->name, suffixes[t]);
        if (t == G_IDX && !found[t]) break;
        QL_TRY(check_tensor(q->name, t, &want[t], found[t], q->n, q->k, q->bits, q->group));
    }
    if (!found[G_IDX] && scheme->desc_act && !scheme->static_groups && q->group < q->k)
        return ql_fail(QL_FORMAT, "%s.g_idx: missing, but desc_act is true: the groups of the inputs are unknown",
                       q->name);
    return QL_OK;
}

ql_status layout_gptq_decode(const checkpoint *ck, const layout_scheme *scheme, const char *module, int64_t n,
                             int64_t k, ql_arena *arena, qmodule *out) {
    layout_rule rule;
    QL_TRY(layout_gptq_rule(scheme, module, &rule));
    *out = (qmodule){.n = n, .k = k, .bits = rule.bits, .group = rule.group == -1 ? k : rule.group};
    if (rule.skipped) return ql_fail(QL_FORMAT, "%s: is quantized, but the config says that it is not", module);
    if (n <= 0 || k <= 0 || n * rule.bits % 32 != 0 || k * rule.bits % 32 != 0)
        return ql_fail(QL_FORMAT, "%s: N = %lld and K = %lld cannot be stored with %d bits", module, (long long)n,
                       (long long)k, rule.bits);
    out->name = module;
    const st_tensor *found[TENSORS];
    QL_TRY(find_tensors(ck, scheme, out, found));

    char *name;
    size_t groups = (size_t)ql_groups(k, out->group);
    QL_TRY(ql_arena_string(arena, module, &name));
    out->name = name;
    QL_TRY(ql_take(arena, (size_t)(n * ql_packed_words(k, rule.bits)), sizeof *out->codes, &out->codes));
    QL_TRY(ql_take(arena, (size_t)n * groups, sizeof *out->scale, &out->scale));
    QL_TRY(ql_take(arena, (size_t)n * groups, sizeof *out->zero, &out->zero));
    if (found[G_IDX]) QL_TRY(ql_take(arena, (size_t)k, sizeof *out->g_idx, &out->g_idx));

    ql_mark scratch = ql_arena_mark(arena);
    ql_status status = decode_weight(ck, found[QWEIGHT], arena, out);
    ql_arena_release(arena, scratch);
    if (status == QL_OK) status = decode_zeros(ck, found[QZEROS], scheme->version, arena, out);
    if (status == QL_OK) status = decode_scales(ck, found[SCALES], arena, out);
    if (status == QL_OK && found[G_IDX]) status = decode_g_idx(ck, found[G_IDX], arena, out);
    ql_arena_release(arena, scratch);
    return status;
}
