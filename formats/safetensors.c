#include "formats/safetensors.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "formats/json_scan.h"

enum { LENGTH_SIZE = 8, MAX_HEADER = 100000000 };

/* Every type of the reference reader; ql_dtype has no name for some, and their tensors are listed but not understood. */
static const struct {
    const char *name;
    unsigned bits;
} dtypes[] = {
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
};

static unsigned dtype_bits(const char *name) {
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (strcmp(dtypes[i].name, name) == 0) return dtypes[i].bits;
    return 0;
}

static ql_dtype dtype_of(const char *name) {
    int dtype = 0;
    while (dtype < QL_DTYPE_COUNT && strcmp(ql_dtype_name((ql_dtype)dtype), name) != 0) dtype++;
    return (ql_dtype)dtype;
}

/* ---- what a file is that is none -------------------------------------------------------------------------------------- */

enum { HEAD_SIZE = 64 };

static const struct {
    const char *magic, *name, *advice;
} foreign[] = {
    {"version https://git-lfs", "a Git-LFS pointer, not the data", "fetch the data with `git lfs pull`"},
    {"\x80\x02", "a Python pickle", "qalib never runs pickles; convert it to safetensors"},
    {"\x80\x03", "a Python pickle", "qalib never runs pickles; convert it to safetensors"},
    {"\x80\x04", "a Python pickle", "qalib never runs pickles; convert it to safetensors"},
    {"\x80\x05", "a Python pickle", "qalib never runs pickles; convert it to safetensors"},
    {"PK\x03\x04", "a zip archive", "torch.save writes these; convert it to safetensors"},
    {"\x7f"
     "ELF",
     "an ELF program or library", "download the model again"},
    {"<!doctype", "an HTML page", "the download returned an error page; download the file again"},
    {"<html", "an HTML page", "the download returned an error page; download the file again"},
    {"{\"error", "a JSON error message", "the download failed; download the file again"},
    {"GGUF", "a GGUF file", "qalib starts from the safetensors checkpoint of the same model"},
    {"\x89HDF", "an HDF5 file", "download the model again"},
    {"\x1f\x8b", "a gzip archive", "unpack it first"},
};

static ql_status fail_no_header(ql_source *source, const char *reason) {
    const char *path = ql_source_path(source);
    char head[HEAD_SIZE + 1] = {0};
    uint64_t size = ql_source_size(source);
    QL_TRY(ql_source_read(source, head, size < HEAD_SIZE ? size : HEAD_SIZE, 0));
    const char *start = head + strspn(head, " \t\r\n");
    for (size_t i = 0; i < sizeof foreign / sizeof foreign[0]; i++)
        if (strncasecmp(start, foreign[i].magic, strlen(foreign[i].magic)) == 0)
            return ql_fail(QL_FORMAT, "%s: this is %s; %s", path, foreign[i].name, foreign[i].advice);
    return ql_fail(QL_FORMAT, "%s: not a safetensors file: %s", path, reason);
}

/* ---- the header -------------------------------------------------------------------------------------------------------- */

static ql_status read_shape(json_scan *scan, st_tensor *tensor) {
    QL_TRY(scan_expect(scan, '['));
    tensor->rank = 0;
    if (scan_take(scan, ']')) return QL_OK;
    do {
        uint64_t dim;
        QL_TRY(scan_uint(scan, &dim));
        if (dim > INT64_MAX) return ql_fail(QL_FORMAT, "dimension %llu is beyond 2^63", (unsigned long long)dim);
        if (tensor->rank == ST_MAX_RANK) return ql_fail(QL_FORMAT, "more than %d dimensions", ST_MAX_RANK);
        tensor->shape[tensor->rank++] = (int64_t)dim;
    } while (scan_take(scan, ','));
    return scan_expect(scan, ']');
}

/* begin and size count from the start of the data until place_tensors. */
static ql_status read_offsets(json_scan *scan, st_tensor *tensor) {
    uint64_t end;
    QL_TRY(scan_expect(scan, '['));
    QL_TRY(scan_uint(scan, &tensor->begin));
    QL_TRY(scan_expect(scan, ','));
    QL_TRY(scan_uint(scan, &end));
    QL_TRY(scan_expect(scan, ']'));
    if (end < tensor->begin)
        return ql_fail(QL_FORMAT, "data_offsets end at %llu before they begin at %llu", (unsigned long long)end,
                       (unsigned long long)tensor->begin);
    tensor->size = end - tensor->begin;
    return QL_OK;
}

static ql_status read_dtype(json_scan *scan, st_tensor *tensor) {
    char *name;
    QL_TRY(scan_string(scan, &name));
    tensor->dtype_name = name;
    tensor->dtype = dtype_of(name);
    return dtype_bits(name) ? QL_OK : ql_fail(QL_FORMAT, "unknown dtype \"%s\"", name);
}

static ql_status skip_value(json_scan *scan) {
    json_t *value;
    QL_TRY(scan_value(scan, &value));
    json_decref(value);
    return QL_OK;
}

/* {"dtype": ..., "shape": ..., "data_offsets": ...} in any order; other keys are skipped, as the reference does. */
static ql_status read_entry(json_scan *scan, st_tensor *tensor) {
    static const char *const keys[] = {"dtype", "shape", "data_offsets"};
    enum { KEYS = 3 };
    bool seen[KEYS] = {false}, first = true;
    QL_TRY(scan_expect(scan, '{'));
    for (;;) {
        char *key;
        QL_TRY(scan_key(scan, &first, &key));
        if (!key) break;
        int which = 0;
        while (which < KEYS && strcmp(key, keys[which]) != 0) which++;
        if (which == KEYS) {
            QL_TRY(skip_value(scan));
            continue;
        }
        if (seen[which]) return ql_fail(QL_FORMAT, "\"%s\" twice", key);
        seen[which] = true;
        if (which == 0) QL_TRY(read_dtype(scan, tensor));
        else if (which == 1) QL_TRY(read_shape(scan, tensor));
        else QL_TRY(read_offsets(scan, tensor));
    }
    for (int i = 0; i < KEYS; i++)
        if (!seen[i]) return ql_fail(QL_FORMAT, "no \"%s\"", keys[i]);
    return QL_OK;
}

/* "__metadata__": an object of strings, or null. */
static ql_status read_metadata(json_scan *scan, st_file *file) {
    if (file->metadata) return ql_fail(QL_FORMAT, "twice");
    QL_TRY(scan_value(scan, &file->metadata));
    if (json_is_null(file->metadata)) return QL_OK;
    if (!json_is_object(file->metadata))
        return ql_fail(QL_FORMAT, "is %s, expected an object of strings", ql_json_type_name(file->metadata));
    const char *key;
    json_t *value;
    json_object_foreach(file->metadata, key, value) {
        if (!json_is_string(value))
            return ql_fail(QL_FORMAT, "\"%s\" is %s, expected a string", key, ql_json_type_name(value));
    }
    return QL_OK;
}

static ql_status read_header(json_scan *scan, st_file *file) {
    bool first = true;
    QL_TRY(scan_expect(scan, '{'));
    for (;;) {
        char *key;
        QL_TRY(scan_key(scan, &first, &key));
        if (!key) return scan_end(scan);
        if (strcmp(key, "__metadata__") == 0) {
            QL_TRY(ql_context(read_metadata(scan, file), "%s: __metadata__", file->path));
        } else {
            st_tensor *tensor = &file->tensors[file->count++];
            tensor->name = key;
            QL_TRY(ql_context(read_entry(scan, tensor), "%s: tensor \"%.200s\"", file->path, key));
        }
    }
}

/* ---- do the tensors fill the file? --------------------------------------------------------------------------------------- */

static ql_status check_size(const char *path, const st_tensor *tensor) {
    uint64_t count = 1, bits;
    bool fits = true;
    for (int i = 0; i < tensor->rank; i++) fits = fits && ql_mul_size(count, (uint64_t)tensor->shape[i], &count);
    fits = fits && ql_mul_size(count, dtype_bits(tensor->dtype_name), &bits);
    if (!fits) return ql_fail(QL_FORMAT, "%s: tensor \"%.200s\": its shape overflows 64 bits", path, tensor->name);
    if (bits % 8 != 0)
        return ql_fail(QL_FORMAT, "%s: tensor \"%.200s\": %llu elements of %s do not end at a byte", path, tensor->name,
                       (unsigned long long)count, tensor->dtype_name);
    if (bits / 8 != tensor->size)
        return ql_fail(QL_FORMAT, "%s: tensor \"%.200s\": shape and dtype %s need %llu bytes, data_offsets span %llu",
                       path, tensor->name, tensor->dtype_name, (unsigned long long)(bits / 8),
                       (unsigned long long)tensor->size);
    return QL_OK;
}

static int by_offset(const void *left, const void *right) {
    const st_tensor *a = left, *b = right;
    if (a->begin != b->begin) return a->begin < b->begin ? -1 : 1;
    if (a->size != b->size)
        return a->size < b->size ? -1 : 1; /* empty tensors come before the one they share an offset with */
    return strcmp(a->name, b->name);
}

/* Sorts the tensors by their data, checks that these follow each other without gap, and lets `begin` count from byte 0. */
static ql_status place_tensors(st_file *file) {
    uint64_t end = 0, room = ql_source_size(file->source) - file->header_size;
    qsort(file->tensors, (size_t)file->count, sizeof *file->tensors, by_offset);
    for (int64_t i = 0; i < file->count; i++) {
        st_tensor *tensor = &file->tensors[i];
        QL_TRY(check_size(file->path, tensor));
        if (tensor->begin != end)
            return ql_fail(QL_FORMAT, "%s: tensor \"%.200s\" begins at data byte %llu, the one before ends at %llu: %s",
                           file->path, tensor->name, (unsigned long long)tensor->begin, (unsigned long long)end,
                           tensor->begin > end ? "a hole" : "they overlap");
        end += tensor->size; /* begin + size was read as one number: no overflow */
        tensor->begin += file->header_size;
    }
    if (end > room)
        return ql_fail(QL_FORMAT, "%s: the file is %llu bytes shorter than its header says; download it again",
                       file->path, (unsigned long long)(end - room));
    if (end < room)
        return ql_fail(QL_FORMAT, "%s: the file is %llu bytes longer than its header says; download it again",
                       file->path, (unsigned long long)(room - end));
    return QL_OK;
}

static int by_name(const void *left, const void *right) {
    const st_tensor *const *a = left, *const *b = right;
    return strcmp((*a)->name, (*b)->name);
}

static ql_status check_names(const st_file *file, ql_arena *arena) {
    ql_mark mark = ql_arena_mark(arena);
    const st_tensor **sorted;
    QL_TRY(ql_take(arena, (size_t)file->count, sizeof *sorted, &sorted));
    for (int64_t i = 0; i < file->count; i++) sorted[i] = &file->tensors[i];
    qsort(sorted, (size_t)file->count, sizeof *sorted, by_name);
    ql_status status = QL_OK;
    for (int64_t i = 1; i < file->count && status == QL_OK; i++)
        if (strcmp(sorted[i - 1]->name, sorted[i]->name) == 0)
            status = ql_fail(QL_FORMAT, "%s: tensor \"%.200s\" twice", file->path, sorted[i]->name);
    ql_arena_release(arena, mark);
    return status;
}

/* ---- opening and reading ------------------------------------------------------------------------------------------------- */

static ql_status load_header(st_file *file, ql_arena *arena, json_scan *scan) {
    uint64_t size = ql_source_size(file->source);
    if (size < LENGTH_SIZE)
        return ql_fail(QL_FORMAT, "%s: %llu bytes are too few for safetensors; download it again", file->path,
                       (unsigned long long)size);
    unsigned char bytes[LENGTH_SIZE];
    QL_TRY(ql_source_read(file->source, bytes, LENGTH_SIZE, 0));
    uint64_t length = 0;
    for (int i = LENGTH_SIZE; i-- > 0;) length = length << 8 | bytes[i];
    if (length > MAX_HEADER) return fail_no_header(file->source, "its header would exceed 100,000,000 bytes");
    if (length > size - LENGTH_SIZE)
        return ql_fail(QL_FORMAT, "%s: the header of %llu bytes ends beyond the file of %llu; download it again",
                       file->path, (unsigned long long)length, (unsigned long long)size);
    file->header_size = LENGTH_SIZE + length;
    char *text;
    QL_TRY(ql_take(arena, length + 1, 1, &text));
    QL_TRY(ql_source_read(file->source, text, length, LENGTH_SIZE));
    if (text[0] != '{') return fail_no_header(file->source, "its header does not start with {");
    ql_sha256(text, length, file->header_sha256);
    *scan = (json_scan){file->path, text, text, text + length};
    return QL_OK;
}

static ql_status list_tensors(st_file *file, ql_arena *arena) {
    json_scan scan;
    QL_TRY(load_header(file, arena, &scan));
    size_t members;
    QL_TRY(ql_json_survey(file->path, scan.text, (size_t)(scan.end - scan.text), &members));
    QL_TRY(ql_take(arena, members, sizeof *file->tensors, &file->tensors));
    QL_TRY(read_header(&scan, file));
    QL_TRY(place_tensors(file));
    return check_names(file, arena);
}

ql_status st_open(const char *path, const char *root, ql_arena *arena, st_file *file) {
    *file = (st_file){0};
    QL_TRY(ql_arena_string(arena, path, (char **)&file->path));
    QL_TRY(ql_source_open(path, root, &file->source));
    ql_status status = list_tensors(file, arena);
    if (json_is_null(file->metadata)) file->metadata = NULL;
    if (status != QL_OK) st_close(file);
    return status;
}

void st_close(st_file *file) {
    ql_source_close(file->source);
    json_decref(file->metadata);
    *file = (st_file){0};
}

ql_status st_read(const st_file *file, const st_tensor *tensor, void *data) {
    return st_read_part(file, tensor, 0, tensor->size, data);
}

ql_status st_read_part(const st_file *file, const st_tensor *tensor, size_t offset, size_t size, void *data) {
    return ql_context(ql_source_read(file->source, data, size, tensor->begin + offset), "tensor \"%.200s\"",
                      tensor->name);
}
