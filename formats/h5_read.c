/* The child that meets the bytes.  It may crash, loop or run out of memory: the parent only sees a pipe that ends. */
#include <fcntl.h>
#include <hdf5.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "formats/h5.h"

typedef struct reader {
    const char *path;
    uint64_t file_bytes;
    hid_t file;
    int out;
} reader;

enum { SLAB_BYTES = 1 << 20, CHUNK_BYTES_MAX = 1 << 26, CHILD_MEMORY = 1 << 30 };

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

static void lower_limit(int resource, rlim_t value) {
    struct rlimit limit;
    if (getrlimit(resource, &limit) != 0) return;
    if (limit.rlim_max == RLIM_INFINITY || value < limit.rlim_max) limit.rlim_cur = limit.rlim_max = value;
    setrlimit(resource, &limit);
}

/* A damaged heap has last words of glibc and sanitizers: they go nowhere. */
static void be_silent(void) {
    static const int deadly[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
    for (size_t i = 0; i < sizeof deadly / sizeof deadly[0]; i++) signal(deadly[i], SIG_DFL);
    int nothing = open("/dev/null", O_WRONLY);
    if (nothing < 0) return;
    dup2(nothing, STDERR_FILENO);
    close(nothing);
}

/* More than any honest file needs.  One descriptor is left, for the file itself: whatever its bytes say, no second one is opened. */
static void enter_limits(uint64_t file_bytes) {
    lower_limit(RLIMIT_CORE, 0);
    lower_limit(RLIMIT_CPU, (rlim_t)(10 + (file_bytes >> 23))); /* seconds; 8 MiB/s is slow even for inflate */
#ifndef SANITIZED                                               /* sanitizers reserve terabytes */
    unsigned long long pages = 0;
    FILE *statm = fopen("/proc/self/statm", "r");
    if (statm && fscanf(statm, "%llu", &pages) == 1)
        lower_limit(RLIMIT_AS, (rlim_t)pages * (rlim_t)sysconf(_SC_PAGESIZE) + CHILD_MEMORY);
    if (statm) fclose(statm);
#endif
    int lowest = dup(STDERR_FILENO);
    if (lowest < 0) return;
    close(lowest);
    lower_limit(RLIMIT_NOFILE, (rlim_t)lowest + 1);
}

/* ---- finding ----------------------------------------------------------------------------------------------------------- */

static void join(const h5_item *item, char full[256]) {
    const char *group = strcmp(item->group, "/") == 0 ? "" : item->group;
    snprintf(full, 256, "%s/%s", group, item->name);
}

/* Every step must be a hard link: the others lead out of the file or round in it. */
static ql_status find_path(const reader *r, const char *full, bool *found) {
    char step[256];
    size_t length = strlen(full);
    *found = true;
    for (size_t i = 1; i <= length && *found; i++) {
        if (full[i] != '/' && full[i] != 0) continue;
        memcpy(step, full, i);
        step[i] = 0;
        htri_t exists = H5Lexists(r->file, step, H5P_DEFAULT);
        H5L_info_t info;
        if (exists < 0 || (exists && H5Lget_info(r->file, step, &info, H5P_DEFAULT) < 0))
            return h5_fail(QL_FORMAT, "%s: %s cannot be looked up", r->path, step);
        if (exists && info.type != H5L_TYPE_HARD)
            return ql_fail(QL_FORMAT, "%s: %s is a link to elsewhere; refused", r->path, step);
        *found = exists > 0;
    }
    return QL_OK;
}

static ql_status find_item(const reader *r, const h5_item *item, bool *found) {
    char full[256];
    *found = true;
    if (item->kind == H5_ARRAY) {
        join(item, full);
        QL_TRY(find_path(r, full, found));
    } else {
        if (strcmp(item->group, "/") != 0) QL_TRY(find_path(r, item->group, found));
        htri_t exists = *found ? H5Aexists_by_name(r->file, item->group, item->name, H5P_DEFAULT) : 0;
        if (exists < 0) return h5_fail(QL_FORMAT, "%s: attribute %s cannot be looked up", r->path, item->name);
        *found = exists > 0;
    }
    if (*found || item->optional) return QL_OK;
    return ql_fail(QL_FORMAT, "%s: %s %s is missing in %s", r->path, item->kind == H5_ARRAY ? "dataset" : "attribute",
                   item->name, item->group);
}

/* ---- attributes -------------------------------------------------------------------------------------------------------- */

static ql_status send_int(const reader *r, const h5_item *item, hid_t attribute, hid_t type) {
    h5_message message = {.status = QL_OK};
    if (H5Tget_class(type) != H5T_INTEGER)
        return ql_fail(QL_FORMAT, "%s: attribute %s is not an integer", r->path, item->name);
    if (H5Aread(attribute, H5T_NATIVE_INT64, &message.value) < 0)
        return h5_fail(QL_FORMAT, "%s: attribute %s cannot be read", r->path, item->name);
    h5_send(r->out, message, NULL);
    return QL_OK;
}

static ql_status read_text(hid_t attribute, hid_t type, char text[H5_TEXT_SIZE + 1]) {
    if (!H5Tis_variable_str(type)) return H5Aread(attribute, type, text) < 0 ? QL_FORMAT : QL_OK;
    char *variable = NULL;
    if (H5Aread(attribute, type, &variable) < 0) return QL_FORMAT;
    if (variable) snprintf(text, H5_TEXT_SIZE + 1, "%s", variable);
    return QL_OK;
}

static ql_status send_text(const reader *r, const h5_item *item, hid_t attribute, hid_t type) {
    char text[H5_TEXT_SIZE + 1] = {0};
    if (H5Tget_class(type) != H5T_STRING || (!H5Tis_variable_str(type) && H5Tget_size(type) > H5_TEXT_SIZE))
        return ql_fail(QL_FORMAT, "%s: attribute %s is not a string of at most %d bytes", r->path, item->name,
                       H5_TEXT_SIZE - 1);
    if (read_text(attribute, type, text) != QL_OK)
        return h5_fail(QL_FORMAT, "%s: attribute %s cannot be read", r->path, item->name);
    if (strlen(text) >= H5_TEXT_SIZE)
        return ql_fail(QL_FORMAT, "%s: attribute %s is longer than %d bytes", r->path, item->name, H5_TEXT_SIZE - 1);
    h5_send(r->out, (h5_message){.bytes = strlen(text)}, text);
    return QL_OK;
}

static ql_status send_attribute(const reader *r, const h5_item *item) {
    hid_t attribute = H5Aopen_by_name(r->file, item->group, item->name, H5P_DEFAULT, H5P_DEFAULT);
    hid_t type = H5Aget_type(attribute), space = H5Aget_space(attribute);
    if (attribute < 0 || type < 0 || space < 0)
        return h5_fail(QL_FORMAT, "%s: attribute %s cannot be opened", r->path, item->name);
    if (H5Sget_simple_extent_npoints(space) != 1)
        return ql_fail(QL_FORMAT, "%s: attribute %s is not a single value", r->path, item->name);
    return item->kind == H5_INT ? send_int(r, item, attribute, type) : send_text(r, item, attribute, type);
}

/* ---- datasets ---------------------------------------------------------------------------------------------------------- */

static ql_status check_type(const reader *r, const h5_item *item, hid_t type) {
    H5T_class_t kind = H5Tget_class(type);
    bool fits = kind == H5T_INTEGER && H5Tget_size(type) <= 8;
    if (item->dtype == QL_F32) fits = H5Tequal(type, H5T_IEEE_F32LE) > 0 || H5Tequal(type, H5T_IEEE_F32BE) > 0;
    if (item->dtype == QL_F64) fits = H5Tequal(type, H5T_IEEE_F64LE) > 0 || H5Tequal(type, H5T_IEEE_F64BE) > 0;
    if (fits) return QL_OK;
    return ql_fail(QL_FORMAT, "%s: dataset %s is not of type %s", r->path, item->name, ql_dtype_name(item->dtype));
}

static ql_status get_dims(const reader *r, const h5_item *item, hid_t space, int64_t dims[2]) {
    hsize_t extent[2] = {1, 1};
    if (H5Sget_simple_extent_type(space) != H5S_SIMPLE || H5Sget_simple_extent_ndims(space) != item->rank ||
        H5Sget_simple_extent_dims(space, extent, NULL) < 0)
        return ql_fail(QL_FORMAT, "%s: dataset %s does not have %d dimension%s", r->path, item->name, item->rank,
                       item->rank == 1 ? "" : "s");
    for (int i = 0; i < 2; i++) dims[i] = extent[i] > INT64_MAX ? INT64_MAX : (int64_t)extent[i];
    return h5_check_dims(r->path, r->file_bytes, item, dims);
}

/* Where the bytes lie and what they passed through.  *chunk: extent of a chunk, 1 where there are none. */
static ql_status check_storage(const reader *r, const h5_item *item, hid_t list, hsize_t chunk[2]) {
    H5D_layout_t layout = H5Pget_layout(list);
    if (layout != H5D_COMPACT && layout != H5D_CONTIGUOUS && layout != H5D_CHUNKED)
        return ql_fail(QL_FORMAT, "%s: dataset %s is virtual; refused", r->path, item->name);
    if (H5Pget_external_count(list) != 0)
        return ql_fail(QL_FORMAT, "%s: dataset %s lies in another file; refused", r->path, item->name);
    for (int i = 0, n = H5Pget_nfilters(list); i < n; i++) {
        unsigned flags;
        size_t parameters = 0;
        H5Z_filter_t filter = H5Pget_filter2(list, (unsigned)i, &flags, &parameters, NULL, 0, NULL, NULL);
        if (filter != H5Z_FILTER_DEFLATE && filter != H5Z_FILTER_SHUFFLE && filter != H5Z_FILTER_FLETCHER32)
            return ql_fail(QL_FORMAT, "%s: dataset %s uses filter %d; deflate, shuffle and fletcher32 are read",
                           r->path, item->name, (int)filter);
    }
    if (layout != H5D_CHUNKED) return QL_OK;
    uint64_t bytes = 0;
    if (H5Pget_chunk(list, 2, chunk) != item->rank || !ql_mul_size(chunk[0], chunk[1], &bytes) ||
        !ql_mul_size(bytes, 8, &bytes) || bytes > CHUNK_BYTES_MAX)
        return ql_fail(QL_FORMAT, "%s: dataset %s has chunks of more than %d MiB", r->path, item->name,
                       CHUNK_BYTES_MAX >> 20);
    return QL_OK;
}

static hid_t memory_type(ql_dtype dtype) {
    switch (dtype) {
    case QL_F64: return H5T_NATIVE_DOUBLE;
    case QL_F32: return H5T_NATIVE_FLOAT;
    case QL_I32: return H5T_NATIVE_INT32;
    case QL_I64: return H5T_NATIVE_INT64;
    default: return H5T_NATIVE_UINT64;
    }
}

/* Slabs of whole rows and whole chunks: each chunk is read and inflated once. */
static ql_status send_rows(const reader *r, const h5_item *item, hid_t dataset, hid_t space, const int64_t dims[2],
                           const hsize_t chunk[2]) {
    size_t row = (size_t)dims[1] * ql_dtype_size(item->dtype);
    hsize_t rows = (SLAB_BYTES / (row + 1) / chunk[0] + 1) * chunk[0], total = (hsize_t)dims[0];
    if (rows > total) rows = total;
    char *slab = malloc(rows * row + 1);
    if (!slab)
        return ql_fail(QL_NOMEM, "%s: no memory for %llu rows of %s", r->path, (unsigned long long)rows, item->name);
    for (hsize_t at = 0; at < total; at += rows) {
        hsize_t start[2] = {at, 0}, count[2] = {total - at < rows ? total - at : rows, (hsize_t)dims[1]};
        hid_t memory = H5Screate_simple(item->rank, count, NULL);
        if (memory < 0 || H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL) < 0 ||
            H5Dread(dataset, memory_type(item->dtype), memory, space, H5P_DEFAULT, slab) < 0)
            return h5_fail(QL_FORMAT, "%s: dataset %s in %s is damaged", r->path, item->name, item->group);
        H5Sclose(memory);
        h5_send(r->out, (h5_message){.bytes = count[0] * row}, slab);
    }
    free(slab);
    return QL_OK;
}

static ql_status send_array(const reader *r, const h5_item *item) {
    char full[256];
    join(item, full);
    hid_t dataset = H5Dopen2(r->file, full, H5P_DEFAULT);
    hid_t type = H5Dget_type(dataset), space = H5Dget_space(dataset), list = H5Dget_create_plist(dataset);
    if (dataset < 0 || type < 0 || space < 0 || list < 0)
        return h5_fail(QL_FORMAT, "%s: dataset %s in %s cannot be opened", r->path, item->name, item->group);
    h5_message message = {.status = QL_OK};
    hsize_t chunk[2] = {1, 1};
    QL_TRY(check_type(r, item, type));
    QL_TRY(get_dims(r, item, space, message.dims));
    QL_TRY(check_storage(r, item, list, chunk));
    h5_send(r->out, message, NULL);
    return send_rows(r, item, dataset, space, message.dims, chunk);
}

/* ---- all of it --------------------------------------------------------------------------------------------------------- */

static ql_status open_file(reader *r) {
    hid_t access;
    QL_TRY(h5_setup(r->path, &access));
    r->file = H5Fopen(r->path, H5F_ACC_RDONLY, access);
    return r->file < 0 ? h5_fail(QL_FORMAT, "%s: not an HDF5 file, or a damaged one", r->path) : QL_OK;
}

static ql_status send_item(const reader *r, const h5_item *item) {
    if (item->absent || item->kind == H5_TEXTS) return QL_OK;
    bool found;
    QL_TRY(find_item(r, item, &found));
    if (found) return item->kind == H5_ARRAY ? send_array(r, item) : send_attribute(r, item);
    h5_send(r->out, (h5_message){.absent = 1}, NULL);
    return QL_OK;
}

_Noreturn void h5_read_child(const char *path, uint64_t file_bytes, const h5_item *items, int count, int out) {
    reader r = {path, file_bytes, -1, out};
    be_silent();
    enter_limits(file_bytes);
    ql_status status = open_file(&r);
    for (int i = 0; status == QL_OK && i < count; i++) status = send_item(&r, &items[i]);
    h5_end(out, status);
}
