/* Rounding to the blocks of GGUF: bytes as the file will hold them, but rows in the order of the checkpoint. */
#include <string.h>

#include "calib/linear.h"
#include "host/mat.h"

/* From a file, every linear has its entry there; else from what the input was measured to be. */
static ql_status find_importance(const linear_job *job, int64_t k, float **weights, linear_record *record) {
    char source[NAME_SIZE + 8], name[GGUF_NAME_SIZE];
    const capture *input = job->input;
    stats_site moments;
    imatrix_entry measured = {.k = k};
    const imatrix_entry *entry = &measured;
    *weights = NULL;
    if (job->importance) {
        snprintf(source, sizeof source, "%s.weight", job->name);
        entry = gguf_tensor_name(source, name) ? imatrix_find(job->importance, name) : NULL;
        if (!entry || entry->k != k) return ql_fail(QL_INTERNAL, "its importance was not checked");
    } else {
        if (!input || !ql_is_present(input->sum_sq) || input->count == 0) return QL_OK;
        capture squares = {.k = k, .count = input->count, .sum_sq = input->sum_sq};
        QL_TRY(capture_download(job->ctx, &squares, job->host, &moments));
        QL_TRY(ql_take(job->host, (size_t)k, sizeof(float), &measured.mean));
        imatrix_mean(moments.sum_sq, moments.count, k, measured.mean);
    }
    for (int64_t i = 0; i < k; i++) record->dead += entry->mean[i] == 0;
    QL_TRY(ql_take(job->host, (size_t)k, sizeof **weights, weights));
    imatrix_weights(entry, *weights);
    return QL_OK;
}

/* Bytes on the device, and the values that they stand for. */
static ql_status encode(const linear_job *job, ql_mat w, const float *weights, ql_mat bytes, ql_mat rounded) {
    const gguf_type *type = job->rule.stored;
    ql_mat importance = ql_no_mat();
    if (type->block == QL_BLOCK_TYPE_COUNT) {
        ql_mat values = ql_mat_of(bytes.data, type->dtype, w.rows, w.cols);
        QL_TRY(ql_convert(job->ctx, w, values));
        return ql_convert(job->ctx, values, rounded);
    }
    if (weights) QL_TRY(ql_arena_upload(job->device, QL_F32, 1, w.cols, weights, &importance));
    QL_TRY(ql_encode_blocks(job->ctx, w, importance, type->block, bytes));
    return ql_decode_blocks(job->ctx, bytes, type->block, rounded);
}

ql_status linear_encode_blocks(const linear_job *job, ql_mat w, qmodule *out, linear_record *record) {
    const gguf_type *type = job->rule.stored;
    ql_mat bytes, rounded;
    float *weights;
    *out = (qmodule){.name = job->name,
                     .n = w.rows,
                     .k = w.cols,
                     .type = CODE_BLOCKS,
                     .bits = job->rule.bits,
                     .group = job->rule.group,
                     .stored = type};
    record->method = method_names[METHOD_RTN];
    phases_enter(job->phases, PHASE_GRID, 0);
    QL_TRY(find_importance(job, w.cols, &weights, record));
    QL_TRY(ql_arena_mat(job->device, QL_U8, w.rows, gguf_row_bytes(type, w.cols), &bytes));
    QL_TRY(ql_arena_mat(job->device, QL_F32, w.rows, w.cols, &rounded));
    QL_TRY(encode(job, w, weights, bytes, rounded));
    QL_TRY(ql_arena_download(job->host, job->ctx, bytes, (void **)&out->codes));
    QL_TRY(gguf_check_encoded(type, job->name, out->codes, w.rows, w.cols));
    phases_enter(job->phases, PHASE_LOSS, 0);
    QL_TRY(ql_loss(job->ctx, w, rounded, ql_no_mat(), &record->loss, &record->norm));
    record->rtn_loss = record->loss;
    phases_enter(job->phases, PHASE_OTHER, 0);
    return QL_OK;
}
