#include "calib/output.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "calib/output_parts.h"
#include "host/log.h"
#include "host/mat.h"
#include "host/num.h"

#define F16_LARGEST 65504.0f
#define DEFAULT_SHARD_SIZE 5000000000ull

uint64_t output_tensor_bytes(const output *out) { return out->plan.tensor_bytes; }

/* ---- before the work ----------------------------------------------------------------------------------------------------------- */

static ql_status find_source(const output *out, const plan_item *item, const st_tensor **found) {
    const st_tensor *want = &item->tensor;
    *found = checkpoint_find(out->ck, want->name);
    if (!*found) return ql_fail(QL_FORMAT, "%s: has no tensor \"%s\"", checkpoint_dir(out->ck), want->name);
    bool fits = (*found)->rank == want->rank;
    for (int d = 0; fits && d < want->rank; d++) fits = (*found)->shape[d] == want->shape[d];
    if (!fits)
        return ql_fail(QL_FORMAT, "%s: the shape of \"%s\" does not follow from config.json", checkpoint_dir(out->ck),
                       want->name);
    if ((*found)->dtype == QL_F16 || (*found)->dtype == QL_BF16 || (*found)->dtype == QL_F32) return QL_OK;
    return ql_fail(QL_FORMAT, "%s: \"%s\" is %s; F16, BF16 or F32 is needed", checkpoint_dir(out->ck), want->name,
                   (*found)->dtype_name);
}

static float element(const void *data, ql_dtype dtype, int64_t i) {
    if (dtype == QL_F32) return ((const float *)data)[i];
    uint16_t half = ((const uint16_t *)data)[i];
    return dtype == QL_F16 ? ql_f16_to_f32(half) : ql_bf16_to_f32(half);
}

/* Largest magnitude of a tensor of the source; NaN and infinity are refused. */
static ql_status measure(output *out, const plan_item *item, float *largest) {
    const st_tensor *source;
    void *data;
    QL_TRY(find_source(out, item, &source));
    ql_mark mark = ql_arena_mark(out->scratch);
    QL_TRY(ql_arena_take(out->scratch, source->size, 1, &data));
    QL_TRY(checkpoint_read(out->ck, source, data));
    int64_t count = (int64_t)(source->size / ql_dtype_size(source->dtype));
    *largest = 0;
    for (int64_t i = 0; i < count; i++) {
        float magnitude = fabsf(element(data, source->dtype, i));
        if (!(magnitude <= 3.4028234e38f))
            return ql_fail(QL_FORMAT, "%s: \"%s\" has %s at element %lld", checkpoint_dir(out->ck), source->name,
                           isnan(magnitude) ? "NaN" : "infinity", (long long)i);
        if (magnitude > *largest) *largest = magnitude;
    }
    ql_arena_release(out->scratch, mark);
    return QL_OK;
}

/* A model runs in one type, so one tensor that F16 cannot hold keeps all of them in BF16. */
static ql_status choose_dtype(output *out) {
    const plan_item *outlier = NULL;
    float largest, most = 0;
    bool source_is_f16 = true;
    for (int64_t i = 0; i < out->plan.count; i++) {
        const plan_item *item = &out->plan.items[i];
        if (item->layer >= 0 || item->added) continue;
        QL_TRY(measure(out, item, &largest));
        source_is_f16 = source_is_f16 && checkpoint_find(out->ck, item->tensor.name)->dtype == QL_F16;
        if (largest > F16_LARGEST && largest > most) outlier = item, most = largest;
    }
    out->dtype = (out->scheme || source_is_f16) && !outlier ? QL_F16 : QL_BF16;
    if (out->scheme && outlier)
        ql_log(QL_WARNING,
               "\"%s\" reaches %g, beyond F16: unquantized tensors stay BF16, which only Marlin-type kernels run with "
               "GPTQ weights",
               outlier->tensor.name, (double)most);
    for (int64_t i = 0; i < out->plan.count; i++) {
        st_tensor *tensor = &out->plan.items[i].tensor;
        if ((out->scheme && out->plan.items[i].layer >= 0) || out->plan.items[i].added) continue;
        tensor->dtype = out->dtype;
        tensor->dtype_name = ql_dtype_name(out->dtype);
    }
    return QL_OK;
}

ql_status output_marker(output *out, char **path) {
    return ql_arena_format(out->arena, path, "%s/" OUTPUT_MARKER, out->dir);
}

/* Killed while the marker was written, a job leaves its temporary and nothing else. */
static ql_status check_unmarked(const output *out, const char *marker) {
    bool empty;
    char *temporary;
    QL_TRY(ql_arena_format(out->arena, &temporary, "%s.tmp", marker));
    unlink(temporary);
    QL_TRY(ql_dir_is_empty(out->dir, &empty));
    return empty ? QL_OK : ql_fail(QL_DISK, "%s: is not empty; choose another output directory", out->dir);
}

/* Only an empty directory or the incomplete output of this very job may be written to: a stale shard would be loaded. */
static ql_status check_dir(output *out, bool *resumed) {
    bool empty;
    char *path, *job;
    size_t size;
    *resumed = false;
    ql_status status = ql_dir_is_empty(out->dir, &empty);
    if (status == QL_MISSING) return ql_fail(QL_DISK, "%s: exists and is not a directory", out->dir);
    if (status != QL_OK || empty) return status;
    QL_TRY(output_marker(out, &path));
    if (!ql_path_exists(path)) return check_unmarked(out, path);
    QL_TRY(ql_file_load(path, 4096, out->arena, &job, &size));
    if (!out->job || strcmp(job, out->job) != 0)
        return ql_fail(QL_DISK, "%s: holds the incomplete output of another job; remove it or choose another directory",
                       out->dir);
    *resumed = true;
    return QL_OK;
}

/* The nearest directory that exists must take new files. */
static ql_status check_writable(output *out) {
    char *path;
    QL_TRY(ql_arena_string(out->arena, out->dir, &path));
    while (access(path[0] ? path : ".", F_OK) != 0) {
        if (errno != ENOENT) return ql_fail_errno("%s", out->dir);
        char *slash = strrchr(path, '/');
        if (slash && slash != path) *slash = 0;
        else path[slash ? 1 : 0] = 0;
    }
    return access(path[0] ? path : ".", W_OK | X_OK) == 0 ? QL_OK : ql_fail_errno("%s: cannot be written", out->dir);
}

static ql_status check_space(output *out) {
    enum { OTHER_FILES = 64 << 20 }; /* tokenizer, texts, headers */
    uint64_t available, needed = out->plan.tensor_bytes + OTHER_FILES;
    needed += needed / 20;
    QL_TRY(ql_dir_free_bytes(out->dir, &available));
    if (available >= needed) return QL_OK;
    return ql_fail(QL_DISK, "%s: the output needs %llu bytes, %llu are free", out->dir, (unsigned long long)needed,
                   (unsigned long long)available);
}

static ql_status plan_tensors(output *out, const model_config *config, uint64_t shard_size) {
    if (!out->gguf)
        return output_plan_make(config, out->scheme, QL_F16, shard_size ? shard_size : DEFAULT_SHARD_SIZE, out->arena,
                                &out->plan);
    for (int64_t i = 0; i < out->gguf->count; i++) out->plan.tensor_bytes += out->gguf->tensors[i].size;
    return QL_OK;
}

ql_status output_open(const char *dir, const checkpoint *ck, const model_config *config, const output_request *request,
                      output **result) {
    *result = NULL;
    output *out = ql_malloc(sizeof *out);
    if (!out) return ql_fail(QL_NOMEM, "no memory for the output");
    *out = (output){.job = request->job, .ck = ck, .scheme = request->scheme, .gguf = request->gguf};
    char *name = NULL;
    bool resumed;
    ql_status status = ql_arena_open(NULL, &out->arena);
    if (status == QL_OK) status = ql_arena_open(NULL, &out->scratch);
    if (status == QL_OK) status = ql_arena_string(out->arena, dir, &name);
    out->dir = name;
    if (status == QL_OK) status = check_dir(out, &resumed);
    if (status == QL_OK) status = check_writable(out);
    if (status == QL_OK) status = plan_tensors(out, config, request->shard_size);
    if (status == QL_OK) status = check_space(out);
    if (status == QL_OK && !out->gguf) status = choose_dtype(out);
    if (status == QL_OK) *result = out;
    else output_close(out);
    return status;
}

void output_close(output *out) {
    if (!out) return;
    st_writer_abort(out->writer);
    ql_arena_close(out->scratch);
    ql_arena_close(out->arena);
    free(out);
}

/* ---- shards ---------------------------------------------------------------------------------------------------------------------- */

/* What an interrupted job wrote goes, but for the marker: it says whose the rest is if this is interrupted, too. */
static ql_status clear(output *out) {
    ql_status status = QL_OK;
    DIR *dir = opendir(out->dir);
    if (!dir) return ql_fail_errno("%s: cannot read the directory", out->dir);
    for (struct dirent *entry; status == QL_OK && (entry = readdir(dir));) {
        char *path;
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0 || strcmp(name, OUTPUT_MARKER) == 0) continue;
        status = ql_arena_format(out->arena, &path, "%s/%s", out->dir, name);
        if (status == QL_OK) status = ql_dir_remove(path);
    }
    closedir(dir);
    out->begun = status == QL_OK;
    return status;
}

static ql_status begin(output *out) {
    bool resumed;
    char *path;
    QL_TRY(check_dir(out, &resumed));
    if (resumed) return clear(out);
    QL_TRY(ql_dir_make(out->dir));
    QL_TRY(output_marker(out, &path));
    const char *job = out->job ? out->job : "";
    QL_TRY(ql_file_save(path, job, strlen(job)));
    out->begun = true;
    return QL_OK;
}

ql_status output_close_shard(output *out) {
    if (!out->writer) return QL_OK;
    unsigned char sha256[32];
    char *name;
    st_writer *writer = out->writer;
    out->writer = NULL;
    QL_TRY(st_writer_commit(writer, sha256));
    QL_TRY(output_shard_name(&out->plan, out->plan.items[out->first].shard, out->arena, &name));
    return output_remember(out, name, sha256);
}

/* Opens the shard of item `next` unless it is open. */
static ql_status select_shard(output *out) {
    const output_plan *plan = &out->plan;
    if (out->writer && plan->items[out->next].shard == plan->items[out->first].shard) return QL_OK;
    QL_TRY(output_close_shard(out));
    int64_t count = 0;
    char *name, *path;
    out->first = out->next;
    while (out->first + count < plan->count && plan->items[out->first + count].shard == plan->items[out->first].shard)
        count++;
    QL_TRY(ql_take(out->arena, (size_t)count, sizeof *out->tensors, &out->tensors));
    for (int64_t i = 0; i < count; i++) out->tensors[i] = plan->items[out->first + i].tensor;
    QL_TRY(output_shard_name(plan, plan->items[out->first].shard, out->arena, &name));
    QL_TRY(ql_arena_format(out->arena, &path, "%s/%s", out->dir, name));
    return st_writer_open_in_order(path, out->tensors, count, NULL, &out->writer);
}

static ql_status put(output *out, const void *data) {
    QL_TRY(select_shard(out));
    QL_TRY(st_writer_put(out->writer, &out->tensors[out->next - out->first], data));
    out->next++;
    return QL_OK;
}

/* To 16 bits in place: element i never lies before what is still to be read. */
static void narrow(void *data, ql_dtype from, ql_dtype to, int64_t count) {
    if (from == to) return;
    uint16_t *half = data;
    for (int64_t i = 0; i < count; i++) {
        float x = element(data, from, i);
        half[i] = to == QL_F16 ? ql_f32_to_f16(x) : ql_f32_to_bf16(x);
    }
}

static ql_status put_source(output *out, const plan_item *item) {
    const st_tensor *source;
    void *data;
    QL_TRY(find_source(out, item, &source));
    QL_TRY(ql_arena_take(out->scratch, source->size, 1, &data));
    QL_TRY(checkpoint_read(out->ck, source, data));
    if (item->added && source->dtype != QL_F32)
        return ql_fail(QL_MISMATCH, "%s: \"%s\" is %s, expected F32", checkpoint_dir(out->ck), source->name,
                       source->dtype_name);
    if (!item->added) narrow(data, source->dtype, out->dtype, (int64_t)(source->size / ql_dtype_size(source->dtype)));
    return put(out, data);
}

static ql_status put_dense(output *out, const qmodule *q) {
    float *w;
    QL_TRY(ql_take(out->scratch, (size_t)(q->n * q->k), sizeof *w, &w));
    qmodule_dequantize(q, w);
    narrow(w, QL_F32, out->dtype, q->n * q->k);
    return put(out, w);
}

static ql_status put_module(output *out, const plan_item *item, const qmodule *q) {
    char expected[NAME_SIZE];
    module_name(expected, item->layer, item->linear);
    if (!q->name || strcmp(q->name, expected) != 0 || !q->codes)
        return ql_fail(QL_INTERNAL, "%s: the output waits for this module and got %s", expected,
                       q->name ? q->name : "none");
    if (!out->scheme) return put_dense(out, q);
    layout_tensors tensors;
    layout_scheme scheme = *out->scheme;
    scheme.dtype = out->dtype;
    QL_TRY(layout_encode(&scheme, q, out->scratch, &tensors));
    for (int t = 0; t < tensors.count; t++) {
        if (tensors.tensor[t].size != item[t].tensor.size)
            return ql_fail(QL_INTERNAL, "%s: %llu bytes, planned were %llu", tensors.tensor[t].name,
                           (unsigned long long)tensors.tensor[t].size, (unsigned long long)item[t].tensor.size);
        QL_TRY(put(out, tensors.data[t]));
    }
    return QL_OK;
}

static ql_status put_folded(output *out, const plan_item *item, const float *values) {
    float *copy;
    int64_t count = item->tensor.shape[0];
    if (item->added) return put(out, values);
    QL_TRY(ql_take(out->scratch, (size_t)count, sizeof *copy, &copy));
    memcpy(copy, values, (size_t)count * sizeof *copy);
    narrow(copy, QL_F32, out->dtype, count);
    return put(out, copy);
}

/* A dense output has a place for every module, also for one that the recipe left as it was. */
static bool stays(const output *out, const qmodule *q) { return !out->scheme && !q->name; }

ql_status output_advance(output *out, int64_t layer, const qmodule *modules, float *const *folded) {
    if (!out->begun) QL_TRY(begin(out));
    while (out->next < out->plan.count) {
        const plan_item *item = &out->plan.items[out->next];
        if ((item->layer >= 0 && item->layer != layer) || (layer >= 0 && item->fold_layer > layer)) break;
        ql_mark mark = ql_arena_mark(out->scratch);
        const float *changed = folded && item->fold_layer == layer ? folded[item->folded] : NULL;
        if (changed) QL_TRY(put_folded(out, item, changed));
        else if (item->layer < 0 || stays(out, &modules[item->linear])) QL_TRY(put_source(out, item));
        else QL_TRY(put_module(out, item, &modules[item->linear]));
        ql_arena_release(out->scratch, mark);
    }
    return QL_OK;
}

ql_status output_layer(output *out, int64_t layer, const qmodule modules[LINEARS], float *const folded[]) {
    QL_TRY(output_advance(out, layer, modules, folded));
    const plan_item *item = &out->plan.items[out->next];
    if (out->next < out->plan.count && item->layer >= 0 && item->layer < layer)
        return ql_fail(QL_INTERNAL, "%s: got layer %lld before layer %lld", out->dir, (long long)layer,
                       (long long)item->layer);
    return QL_OK;
}

ql_status output_gguf(output *out, const gguf_meta *meta, const gguf_source *source) {
    unsigned char sha256[32];
    char *path;
    QL_TRY(begin(out));
    QL_TRY(ql_arena_format(out->arena, &path, "%s/" GGUF_MODEL, out->dir));
    QL_TRY(gguf_save(path, out->gguf, meta, source, sha256));
    return output_remember(out, GGUF_MODEL, sha256);
}
