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

/* to = from with rows moved, for a file (`writing`) or back.   [rows][size bytes] */
static void move_rows(const void *from, void *to, int64_t rows, size_t size, int64_t heads, bool writing) {
    for (int64_t r = 0; r < rows; r++) {
        int64_t other = source_row(r, rows, heads);
        memcpy((char *)to + (size_t)(writing ? r : other) * size,
               (const char *)from + (size_t)(writing ? other : r) * size, size);
    }
}

/* Rows of an entry, each of `size` bytes; a bias is a column. */
static ql_status moved(const gguf_entry *e, size_t size, bool writing, ql_arena *arena, void **rows) {
    char *copy;
    int64_t count = e->n;
    if (!e->heads) return QL_OK;
    if (e->n == 1) count = e->k, size /= (size_t)e->k;
    QL_TRY(ql_take(arena, (size_t)count, size, &copy));
    move_rows(*rows, copy, count, size, e->heads, writing);
    *rows = copy;
    return QL_OK;
}

/* ---- encoding -------------------------------------------------------------------------------------------------------------------- */

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

ql_status gguf_check_encoded(const gguf_type *type, const char *name, const void *bytes, int64_t n, int64_t k) {
    int64_t row_bytes = gguf_row_bytes(type, k);
    for (int64_t i = 0; type->block < QL_BLOCK_TYPE_COUNT && i < n * row_bytes; i += type->bytes)
        if (!finite_block(type->block, (const uint8_t *)bytes + i))
            return ql_fail(QL_MISMATCH, "tensor \"%s\": row %lld has values whose scale does not fit into F16", name,
                           (long long)(i / row_bytes));
    return QL_OK;
}

static ql_status encode_blocks(ql_ctx *ctx, const gguf_entry *e, float *values, float *weights, uint8_t *bytes) {
    const gguf_type *type = e->tensor.type;
    ql_mat importance = weights ? ql_mat_of(weights, QL_F32, 1, e->k) : ql_no_mat();
    QL_TRY(ql_encode_blocks(ctx, ql_mat_of(values, QL_F32, e->n, e->k), importance, type->block,
                            ql_mat_of(bytes, QL_U8, e->n, gguf_row_bytes(type, e->k))));
    return gguf_check_encoded(type, e->tensor.name, bytes, e->n, e->k);
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

/* The bytes of a tensor, rows in the order of the checkpoint: made before, or from its values. */
static ql_status make_bytes(const gguf_plan *plan, const gguf_source *source, const gguf_entry *e, ql_arena *arena,
                            void **bytes) {
    float *values, *weights;
    *bytes = NULL;
    if (source->encoded) QL_TRY(source->encoded(source->user, e, bytes));
    if (*bytes) return QL_OK;
    QL_TRY(get_values(plan, source, e, arena, &values));
    QL_TRY(find_weights(source->weights, e, arena, &weights));
    QL_TRY(ql_arena_take(arena, (size_t)e->n, (size_t)gguf_row_bytes(e->tensor.type, e->k), bytes));
    if (e->tensor.type->block == QL_BLOCK_TYPE_COUNT) return encode_dense(source->ctx, e, values, *bytes);
    return encode_blocks(source->ctx, e, values, weights, *bytes);
}

static ql_status save_tensor(gguf_writer *writer, const gguf_plan *plan, const gguf_source *source,
                             const gguf_entry *e) {
    ql_arena *arena;
    void *bytes;
    size_t row = (size_t)gguf_row_bytes(e->tensor.type, e->k);
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = make_bytes(plan, source, e, arena, &bytes);
    if (status == QL_OK) status = moved(e, row, true, arena, &bytes);
    if (status == QL_OK) status = gguf_writer_append(writer, bytes, (uint64_t)e->n * row);
    ql_arena_close(arena);
    return status;
}

static ql_status check_values(const gguf_plan *plan, const gguf_source *source, const gguf_entry *e) {
    ql_arena *arena;
    float *values;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = get_values(plan, source, e, arena, &values);
    for (int64_t i = 0; status == QL_OK && e->tensor.rank == 2 && i < e->n * e->k; i++)
        if (fabsf(values[i]) > 65504)
            status = ql_fail(QL_MISMATCH, "tensor \"%s\": %g at row %lld, column %lld does not fit into F16",
                             e->tensor.name, (double)values[i], (long long)(i / e->k), (long long)(i % e->k));
    ql_arena_close(arena);
    return status;
}

ql_status gguf_check_rest(const gguf_plan *plan, const gguf_source *source) {
    for (int64_t i = 0; i < plan->count; i++)
        if (!gguf_is_linear(&plan->entries[i])) QL_TRY(check_values(plan, source, &plan->entries[i]));
    return QL_OK;
}

static const gguf_entry *find_entry(const gguf_plan *plan, const char *name) {
    for (int64_t i = 0; i < plan->count; i++)
        if (strcmp(plan->entries[i].tensor.name, name) == 0) return &plan->entries[i];
    return NULL;
}

ql_status gguf_check_importance(const gguf_plan *plan, const imatrix *matrix) {
    for (int64_t i = 0; i < matrix->count; i++) {
        const imatrix_entry *have = &matrix->entries[i];
        const gguf_entry *e = find_entry(plan, have->name);
        if (!e || e->tensor.rank != 2)
            return ql_fail(QL_MISMATCH, "has \"%.100s\", which this model has not; is it another model's?", have->name);
        if (e->k != have->k)
            return ql_fail(QL_MISMATCH, "\"%s\" has %lld values, the weight has %lld inputs; is it another model's?",
                           have->name, (long long)have->k, (long long)e->k);
    }
    for (int64_t i = 0; i < plan->count; i++)
        if (gguf_is_linear(&plan->entries[i]) && !imatrix_find(matrix, plan->entries[i].tensor.name))
            return ql_fail(QL_MISMATCH, "has nothing for \"%s\"; is it another model's?", plan->entries[i].tensor.name);
    return QL_OK;
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
    void *rows = w;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = ql_take(arena, t->size, 1, &bytes);
    if (status == QL_OK) status = gguf_read(file, t, bytes);
    if (status == QL_OK) status = ql_context(decode_bytes(ctx, t, bytes, w), "%s", file->path);
    if (status == QL_OK) status = moved(&e, (size_t)e.k * sizeof *w, false, arena, &rows);
    if (status == QL_OK && rows != w) memcpy(w, rows, (size_t)(e.n * e.k) * sizeof *w);
    ql_arena_close(arena);
    return status;
}

/* ---- verification ---------------------------------------------------------------------------------------------------------------- */

/* Several times the relative error on normal weights: whatever is wrong with rows, codes or scales costs more than 100 %. */
double gguf_most_error(const gguf_type *type) {
    switch (type->block) {
    case QL_Q2_K: return 0.7;
    case QL_Q3_K: return 0.5;
    case QL_BLOCK_TYPE_COUNT: return type->dtype == QL_F32 ? 0 : 0.005;
    default: return 0.3;
    }
}

static ql_status check_decoded(const gguf_file *file, const gguf_entry *e, const float *w) {
    for (int64_t i = 0; i < e->n * e->k; i++)
        if (!isfinite(w[i]))
            return ql_fail(QL_FORMAT, "%s: tensor \"%s\" is not finite at row %lld, column %lld", file->path,
                           e->tensor.name, (long long)(i / e->k), (long long)(i % e->k));
    return QL_OK;
}

static ql_status compare(const gguf_file *file, const gguf_plan *plan, const gguf_source *source, const gguf_entry *e,
                         const gguf_tensor *t, ql_arena *arena, double *error) {
    float *truth, *found;
    double square = 0, norm = 0;
    QL_TRY(ql_take(arena, (size_t)(e->n * e->k), sizeof *found, &found));
    QL_TRY(gguf_decode(source->ctx, file, t, e->heads, found));
    QL_TRY(check_decoded(file, e, found));
    if (!source->values) return QL_OK;
    QL_TRY(get_values(plan, source, e, arena, &truth));
    for (int64_t i = 0; i < e->n * e->k; i++) {
        double difference = (double)found[i] - (double)truth[i];
        square += difference * difference, norm += (double)truth[i] * (double)truth[i];
    }
    *error = norm > 0 ? sqrt(square / norm) : sqrt(square);
    if (*error <= gguf_most_error(t->type)) return QL_OK;
    return ql_fail(QL_FORMAT, "%s: tensor \"%s\" is %.3g of itself away from the source, %s allows %.3g", file->path,
                   t->name, *error, t->type->name, gguf_most_error(t->type));
}

ql_status gguf_verify_tensor(const gguf_file *file, const gguf_plan *plan, const gguf_source *source,
                             const gguf_entry *e, double *error) {
    const gguf_tensor *t = gguf_find(file, e->tensor.name);
    *error = 0;
    if (!t) return ql_fail(QL_FORMAT, "%s: tensor \"%s\" is missing", file->path, e->tensor.name);
    if (t->type != e->tensor.type || memcmp(t->ne, e->tensor.ne, sizeof t->ne) != 0)
        return ql_fail(QL_FORMAT, "%s: tensor \"%s\" is %s [%lld, %lld], expected %s [%lld, %lld]", file->path, t->name,
                       t->type->name, (long long)t->ne[1], (long long)t->ne[0], e->tensor.type->name,
                       (long long)e->tensor.ne[1], (long long)e->tensor.ne[0]);
    ql_arena *arena;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = compare(file, plan, source, e, t, arena, error);
    ql_arena_close(arena);
    return status;
}
