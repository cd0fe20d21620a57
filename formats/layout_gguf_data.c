/* Values to the bytes of formats/layout_gguf.h and back. */
#include <math.h>
#include <string.h>

#include "formats/layout_gguf.h"
#include "host/mat.h"
#include "host/num.h"

/* ---- rows of q and k ------------------------------------------------------------------------------------------------------------- */

/* Where row `row` of GGUF lies in the checkpoint: neighbours there are a half head apart here. */
static int64_t source_row(int64_t row, int64_t rows, int64_t heads) {
    int64_t d = rows / heads, in_head = row % d;
    return row - in_head + in_head % 2 * (d / 2) + in_head / 2;
}

/* to = from with rows moved, for a file (`writing`) or back.   [rows][cols]; a bias is a column. */
static void move_rows(const float *from, float *to, int64_t rows, int64_t cols, int64_t heads, bool writing) {
    for (int64_t r = 0; r < rows; r++) {
        int64_t other = source_row(r, rows, heads);
        memcpy(to + (writing ? r : other) * cols, from + (writing ? other : r) * cols, (size_t)cols * sizeof *to);
    }
}

static ql_status moved(const gguf_entry *e, bool writing, ql_arena *arena, float **values) {
    float *copy;
    int64_t rows = e->n == 1 ? e->k : e->n, cols = e->n == 1 ? 1 : e->k;
    if (!e->heads) return QL_OK;
    QL_TRY(ql_take(arena, (size_t)(rows * cols), sizeof *copy, &copy));
    move_rows(*values, copy, rows, cols, e->heads, writing);
    *values = copy;
    return QL_OK;
}

/* ---- encoding -------------------------------------------------------------------------------------------------------------------- */

static ql_status fail_scale(const char *name, int64_t row) {
    return ql_fail(QL_MISMATCH, "tensor \"%s\": row %lld has values whose scale does not fit into F16", name,
                   (long long)row);
}

static bool finite_half(const uint8_t *b) { return (b[1] & 0x7c) != 0x7c; }

/* Every binary16 of a block must be finite, or its weights are NaN for the runtime. */
static bool finite_block(ql_block_type type, const uint8_t *b) {
    switch (type) {
    case QL_Q2_K: return finite_half(b + 80) && finite_half(b + 82);
    case QL_Q3_K: return finite_half(b + 108);
    case QL_Q6_K: return finite_half(b + 208);
    case QL_Q4_1:
    case QL_Q5_1:
    case QL_Q4_K:
    case QL_Q5_K: return finite_half(b) && finite_half(b + 2);
    default: return finite_half(b);
    }
}

static ql_status encode_blocks(ql_ctx *ctx, const gguf_entry *e, float *values, float *weights, uint8_t *bytes) {
    ql_block_type type = e->tensor.type->block;
    int64_t size = ql_block_bytes(type), row_bytes = e->k / ql_block_weights(type) * size;
    ql_mat importance = weights ? ql_mat_of(weights, QL_F32, 1, e->k) : ql_no_mat();
    QL_TRY(ql_encode_blocks(ctx, ql_mat_of(values, QL_F32, e->n, e->k), importance, type,
                            ql_mat_of(bytes, QL_U8, e->n, row_bytes)));
    for (int64_t i = 0; i < e->n * row_bytes / size; i++)
        if (!finite_block(type, bytes + i * size)) return fail_scale(e->tensor.name, i * size / row_bytes);
    return QL_OK;
}

/* Values of a type of their own, rounded once. */
static ql_status encode_dense(ql_ctx *ctx, const gguf_entry *e, float *values, uint8_t *bytes) {
    ql_dtype dtype = e->tensor.type->dtype;
    QL_TRY(ql_convert(ctx, ql_mat_of(values, QL_F32, e->n, e->k), ql_mat_of(bytes, dtype, e->n, e->k)));
    for (int64_t i = 0; dtype == QL_F16 && i < e->n * e->k; i++)
        if (!finite_half(bytes + 2 * i))
            return ql_fail(QL_MISMATCH, "tensor \"%s\": %g does not fit into F16", e->tensor.name, (double)values[i]);
    return QL_OK;
}

static ql_status find_weights(const imatrix *matrix, const gguf_entry *e, ql_arena *arena, float **weights) {
    const imatrix_entry *found = matrix ? imatrix_find(matrix, e->tensor.name) : NULL;
    *weights = NULL;
    if (!found || e->tensor.type->block == QL_BLOCK_TYPE_COUNT) return QL_OK;
    if (found->k != e->k)
        return ql_fail(QL_MISMATCH, "tensor \"%s\" has %lld inputs, its importance %lld", e->tensor.name,
                       (long long)e->k, (long long)found->k);
    QL_TRY(ql_take(arena, (size_t)e->k, sizeof **weights, weights));
    imatrix_weights(found, *weights);
    return QL_OK;
}

static ql_status get_values(const gguf_plan *plan, const gguf_source *source, const gguf_entry *e, ql_arena *arena,
                            float **values) {
    QL_TRY(ql_take(arena, (size_t)(e->n * e->k), sizeof **values, values));
    if (!e->source) gguf_rope_factors(plan->config, *values);
    else QL_TRY(source->values(source->user, e, *values));
    for (int64_t i = 0; i < e->n * e->k; i++)
        if (!isfinite((*values)[i]))
            return ql_fail(QL_FORMAT, "tensor \"%s\" is not finite at row %lld, column %lld", e->tensor.name,
                           (long long)(i / e->k), (long long)(i % e->k));
    return QL_OK;
}

static ql_status save_tensor(gguf_writer *writer, const gguf_plan *plan, const gguf_source *source,
                             const gguf_entry *e) {
    ql_arena *arena;
    float *values, *weights;
    uint8_t *bytes;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = get_values(plan, source, e, arena, &values);
    if (status == QL_OK) status = moved(e, true, arena, &values);
    if (status == QL_OK) status = find_weights(source->weights, e, arena, &weights);
    if (status == QL_OK) status = ql_take(arena, plan->tensors[e - plan->entries].size, 1, &bytes);
    if (status == QL_OK)
        status = e->tensor.type->block < QL_BLOCK_TYPE_COUNT ? encode_blocks(source->ctx, e, values, weights, bytes)
                                                             : encode_dense(source->ctx, e, values, bytes);
    if (status == QL_OK) status = gguf_writer_append(writer, bytes, plan->tensors[e - plan->entries].size);
    ql_arena_close(arena);
    return status;
}

ql_status gguf_save(const char *path, const gguf_plan *plan, const gguf_meta *meta, const gguf_source *source,
                    unsigned char sha256[32]) {
    gguf_writer *writer;
    QL_TRY(gguf_writer_open(path, meta, plan->tensors, plan->count, &writer));
    for (int64_t i = 0; i < plan->count; i++) {
        ql_status status = save_tensor(writer, plan, source, &plan->entries[i]);
        if (status != QL_OK) {
            gguf_writer_abort(writer);
            return ql_context(status, "%s", path);
        }
    }
    return gguf_writer_commit(writer, sha256);
}

ql_status gguf_values_of_checkpoint(void *user, const gguf_entry *e, float *w) {
    const checkpoint *ck = user;
    const st_tensor *t = checkpoint_find(ck, e->source);
    if (!t) return ql_fail(QL_FORMAT, "%s: tensor \"%s\" is missing", checkpoint_dir(ck), e->source);
    uint64_t count = (uint64_t)(e->n * e->k), size = ql_dtype_size(t->dtype);
    bool known = t->dtype == QL_F32 || t->dtype == QL_F16 || t->dtype == QL_BF16;
    if (!known || t->size != count * size)
        return ql_fail(QL_FORMAT, "%s: tensor \"%s\" is no %lld x %lld values of F32, F16 or BF16", checkpoint_dir(ck),
                       t->name, (long long)e->n, (long long)e->k);
    uint8_t *raw =
        (uint8_t *)w + count * (4 - size); /* at the end, so that widening from the front never overtakes it */
    QL_TRY(checkpoint_read(ck, t, raw));
    for (uint64_t i = 0; i < count && t->dtype != QL_F32; i++) {
        uint16_t half;
        memcpy(&half, raw + 2 * i, sizeof half);
        w[i] = t->dtype == QL_F16 ? ql_f16_to_f32(half) : ql_bf16_to_f32(half);
    }
    return QL_OK;
}

/* ---- decoding -------------------------------------------------------------------------------------------------------------------- */

static ql_status decode_bytes(ql_ctx *ctx, const gguf_tensor *t, void *bytes, float *w) {
    int64_t k = t->ne[0], n = t->ne[1] * t->ne[2] * t->ne[3];
    ql_mat values = ql_mat_of(w, QL_F32, n, k);
    if (t->type->block < QL_BLOCK_TYPE_COUNT)
        return ql_decode_blocks(ctx, ql_mat_of(bytes, QL_U8, n, k / t->type->count * t->type->bytes), t->type->block,
                                values);
    if (t->type->dtype == QL_F32 || t->type->dtype == QL_F16 || t->type->dtype == QL_BF16)
        return ql_convert(ctx, ql_mat_of(bytes, t->type->dtype, n, k), values);
    return ql_fail(QL_MISMATCH, "tensor \"%s\" is %s, which qalib does not decode", t->name, t->type->name);
}

ql_status gguf_decode(ql_ctx *ctx, const gguf_file *file, const gguf_tensor *t, int64_t heads, float *w) {
    ql_arena *arena;
    void *bytes;
    gguf_entry e = {.n = t->ne[1] * t->ne[2] * t->ne[3], .k = t->ne[0], .heads = heads};
    float *values = w;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = ql_take(arena, t->size, 1, &bytes);
    if (status == QL_OK) status = gguf_read(file, t, bytes);
    if (status == QL_OK) status = ql_context(decode_bytes(ctx, t, bytes, w), "%s", file->path);
    if (status == QL_OK) status = moved(&e, false, arena, &values);
    if (status == QL_OK && values != w) memcpy(w, values, (size_t)(e.n * e.k) * sizeof *w);
    ql_arena_close(arena);
    return status;
}

/* ---- verification ---------------------------------------------------------------------------------------------------------------- */

/* Several times the relative error on normal weights: whatever is wrong with rows, codes or scales costs more than 100 %. */
static double most_error(const gguf_type *type) {
    switch (type->block) {
    case QL_Q2_K: return 0.7;
    case QL_Q3_K: return 0.5;
    case QL_BLOCK_TYPE_COUNT: return type->dtype == QL_F32 ? 0 : 0.005;
    default: return 0.3;
    }
}

static ql_status compare(const gguf_file *file, const gguf_plan *plan, const gguf_source *source, const gguf_entry *e,
                         const gguf_tensor *t, ql_arena *arena) {
    float *truth, *found;
    double error = 0, norm = 0;
    QL_TRY(get_values(plan, source, e, arena, &truth));
    QL_TRY(ql_take(arena, (size_t)(e->n * e->k), sizeof *found, &found));
    QL_TRY(gguf_decode(source->ctx, file, t, e->heads, found));
    for (int64_t i = 0; i < e->n * e->k; i++) {
        double difference = (double)found[i] - (double)truth[i];
        error += difference * difference, norm += (double)truth[i] * (double)truth[i];
    }
    double most = most_error(e->tensor.type);
    if (sqrt(error) <= most * sqrt(norm)) return QL_OK;
    return ql_fail(QL_FORMAT, "%s: tensor \"%s\" is %.3g of itself away from the source, %s allows %.3g", file->path,
                   t->name, sqrt(error / norm), t->type->name, most);
}

static ql_status verify_tensor(const gguf_file *file, const gguf_plan *plan, const gguf_source *source,
                               const gguf_entry *e) {
    const gguf_tensor *t = gguf_find(file, e->tensor.name);
    if (!t) return ql_fail(QL_FORMAT, "%s: tensor \"%s\" is missing", file->path, e->tensor.name);
    if (t->type != e->tensor.type || memcmp(t->ne, e->tensor.ne, sizeof t->ne) != 0)
        return ql_fail(QL_FORMAT, "%s: tensor \"%s\" is %s [%lld, %lld], expected %s [%lld, %lld]", file->path, t->name,
                       t->type->name, (long long)t->ne[1], (long long)t->ne[0], e->tensor.type->name,
                       (long long)e->tensor.ne[1], (long long)e->tensor.ne[0]);
    ql_arena *arena;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = compare(file, plan, source, e, t, arena);
    ql_arena_close(arena);
    return status;
}

ql_status gguf_verify(const gguf_file *file, const gguf_plan *plan, const gguf_source *source) {
    for (int64_t i = 0; i < plan->count; i++) QL_TRY(verify_tensor(file, plan, source, &plan->entries[i]));
    if (file->count != plan->count)
        return ql_fail(QL_FORMAT, "%s: %lld tensors, the model has %lld", file->path, (long long)file->count,
                       (long long)plan->count);
    return QL_OK;
}
