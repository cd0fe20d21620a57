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
#include "formats/layout_parts.h"

#include <stdio.h>
#include <string.h>

#include "host/log.h"
#include "host/mat.h"
#include "host/num.h"

enum { QWEIGHT, QZEROS, SCALES, G_IDX, TENSORS };
static const char *const suffixes[TENSORS + 1] = {"qweight", "qzeros", "scales", "g_idx"};

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

/* Shapes and types of the four tensors; names are left to the caller. */
static void describe(const qmodule *q, st_tensor tensor[TENSORS]) {
    int64_t groups = ql_groups(q->k, q->group);
    tensor[QWEIGHT] = layout_tensor(QL_I32, q->k * q->bits / 32, q->n);
    tensor[QZEROS] = layout_tensor(QL_I32, groups, q->n * q->bits / 32);
    tensor[SCALES] = layout_tensor(QL_F16, groups, q->n);
    tensor[G_IDX] = layout_tensor(QL_I32, q->k, 0);
}

static const char *obstacle(const layout_scheme *scheme, int64_t n, int64_t k, layout_rule rule, ql_arena *arena) {
    (void)scheme;
    char *reason = NULL;
    int bits = rule.bits;
    int64_t group = rule.group;
    ql_status status = QL_OK;
    if (bits != 2 && bits != 3 && bits != 4 && bits != 8)
        status = ql_arena_format(arena, &reason, "%d bits; GPTQ files hold 2, 3, 4 or 8", bits);
    else if (k <= 0 || k % 32 != 0)
        status = ql_arena_format(arena, &reason, "K = %lld is not a multiple of 32", (long long)k);
    else if (n <= 0 || n % 32 != 0)
        status = ql_arena_format(arena, &reason, "N = %lld is not a multiple of 32", (long long)n);
    else if (group >= 0 && (group == 0 || k % group != 0))
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
        layout_put_field(pattern, i, scheme->bits, (1u << (scheme->bits - 1)) - (scheme->version == 2));
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
            QL_TRY(layout_check_zero(q, n, g));
            if (version == 1 && zero == 0)
                return ql_fail(QL_MISMATCH,
                               "%s: output %lld, group %lld has the zero point 0, which GPTQ v1 cannot hold; use v2",
                               q->name, (long long)n, (long long)g);
            layout_put_field(qzeros + g * words, n, q->bits, zero - (version == 1));
        }
    return QL_OK;
}

static ql_status encode(const layout_scheme *scheme, const qmodule *q, ql_arena *arena, layout_tensors *out) {
    *out = (layout_tensors){.count = TENSORS};
    describe(q, out->tensor);
    QL_TRY(layout_begin(q, suffixes, arena, out));
    if (!q->codes) return QL_OK;
    transpose(q->codes, q->n, ql_packed_words(q->k, q->bits), out->data[QWEIGHT]);
    QL_TRY(encode_zeros(q, scheme->version, out->data[QZEROS]));
    QL_TRY(layout_put_scales(q, true, out->data[SCALES]));
    return layout_put_g_idx(q, suffixes[G_IDX], arena, out->data[G_IDX]);
}

/* ---- decoding ------------------------------------------------------------------------------------------------------------ */

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
            uint32_t zero = layout_get_field(words + g * row, n, q->bits) + (version == 1);
            if (zero >> q->bits)
                return ql_fail(QL_FORMAT,
                               "%s.qzeros: output %lld, group %lld holds %u, a zero point of 0 in v1, which loaders "
                               "read differently",
                               q->name, (long long)n, (long long)g, zero - 1);
            q->zero[n * groups + g] = (uint8_t)zero;
        }
    return QL_OK;
}

/* Type and shape of all four tensors before anything is allocated. */
static ql_status find_tensors(const checkpoint *ck, const layout_scheme *scheme, const qmodule *q,
                              const st_tensor *found[TENSORS]) {
    st_tensor want[TENSORS];
    describe(q, want);
    for (int t = 0; t < TENSORS; t++) {
        char hint[64] = "";
        found[t] = layout_find(ck, q->name, suffixes[t]);
        if (t == G_IDX && !found[t]) break;
        if (t == QWEIGHT && found[t] && found[t]->rank == 2) guess_qweight(found[t], q->n, q->k, hint, sizeof hint);
        QL_TRY(layout_check_tensor(q, suffixes[t], &want[t], found[t], hint));
    }
    if (!found[G_IDX] && scheme->desc_act && !scheme->static_groups && q->group < q->k)
        return ql_fail(QL_FORMAT, "%s.g_idx: missing, but desc_act is true: the groups of the inputs are unknown",
                       q->name);
    return QL_OK;
}

static ql_status decode(const checkpoint *ck, const layout_scheme *scheme, ql_arena *arena, qmodule *q) {
    const st_tensor *found[TENSORS];
    if (q->n * q->bits % 32 != 0 || q->k * q->bits % 32 != 0)
        return ql_fail(QL_FORMAT, "%s: N = %lld and K = %lld cannot be stored with %d bits", q->name, (long long)q->n,
                       (long long)q->k, q->bits);
    QL_TRY(find_tensors(ck, scheme, q, found));
    QL_TRY(layout_take(arena, q));
    if (found[G_IDX]) QL_TRY(layout_get_g_idx(ck, found[G_IDX], suffixes[G_IDX], arena, q));
    ql_mark scratch = ql_arena_mark(arena);
    ql_status status = decode_weight(ck, found[QWEIGHT], arena, q);
    ql_arena_release(arena, scratch);
    if (status == QL_OK) status = decode_zeros(ck, found[QZEROS], scheme->version, arena, q);
    if (status == QL_OK) status = layout_get_scales(ck, found[SCALES], suffixes[SCALES], true, arena, q);
    ql_arena_release(arena, scratch);
    return status;
}

/* Every grid of integers can be said: `dynamic` holds exceptions. */
static ql_status check(const layout_scheme *scheme) { return layout_check_integers(scheme, "GPTQ"); }

const layout layout_gptq = {
    .name = "GPTQ",
    .quant_method = "gptq",
    .marker = "qweight",
    .suffixes = suffixes,
    .check = check,
    .config = layout_gptq_config,
    .read = layout_gptq_read,
    .rule = layout_gptq_rule,
    .obstacle = obstacle,
    .encode = encode,
    .decode = decode,
};
