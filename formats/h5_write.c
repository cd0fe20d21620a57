/* Writing: our own items, so nothing here is suspicious but the disk. */
#include <errno.h>
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "formats/h5.h"
#include "host/fault.h"

/* ---- what both children share ------------------------------------------------------------------------------------------ */

static void put(int out, const void *data, size_t size) {
    for (const char *from = data; size > 0;) {
        ssize_t written = write(out, from, size);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) _exit(1); /* the parent has seen enough */
        from += written;
        size -= (size_t)written;
    }
}

void h5_send(int out, h5_message message, const void *data) {
    put(out, &message, sizeof message);
    if (data) put(out, data, message.bytes);
}

_Noreturn void h5_end(int out, ql_status status) {
    const char *sentence = ql_last_error();
    if (status != QL_OK) h5_send(out, (h5_message){.status = (int32_t)status, .bytes = strlen(sentence)}, sentence);
    _exit(0); /* HDF5's own cleanup at exit would flush into files that are given up */
}

static herr_t innermost(unsigned n, const H5E_error2_t *error, void *text) {
    if (n == 0 && error->desc) snprintf(text, 400, "%s", error->desc);
    return 0;
}

ql_status h5_fail(ql_status status, const char *format, ...) {
    char sentence[1024], reason[400] = "no reason given";
    va_list args;
    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, innermost, reason);
    const char *number = strstr(reason, "errno = ");
    errno = number ? atoi(number + strlen("errno = ")) : 0;
    if (errno) return ql_fail_errno("%s", sentence);
    return ql_fail(status, "%s (HDF5: %s)", sentence, reason);
}

ql_status h5_setup(const char *path, int64_t *access) {
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    *access = H5Pcreate(H5P_FILE_ACCESS);
    if (*access < 0 || H5PLset_loading_state(0) < 0 || H5Pset_fclose_degree(*access, H5F_CLOSE_STRONG) < 0 ||
        H5Pset_file_locking(*access, 0, 1) < 0 ||
        H5Pset_libver_bounds(*access, H5F_LIBVER_EARLIEST, H5F_LIBVER_V18) < 0)
        return h5_fail(QL_INTERNAL, "%s: HDF5 cannot be set up", path);
    return QL_OK;
}

/* ---- items --------------------------------------------------------------------------------------------------------------- */

typedef struct writer {
    const char *path;
    hid_t file;
} writer;

enum { TILE = 256, CHUNK_ELEMENTS = 1 << 17, CHUNK_ROWS = 64 };

static ql_status failed(const writer *w, const h5_item *item) {
    return h5_fail(QL_IO, "%s: %s cannot be written", w->path, item->name);
}

static ql_status open_group(const writer *w, const h5_item *item, hid_t *group) {
    *group = H5Gopen2(w->file, item->group, H5P_DEFAULT);
    if (*group >= 0) return QL_OK;
    hid_t parents = H5Pcreate(H5P_LINK_CREATE), list = H5Pcreate(H5P_GROUP_CREATE);
    H5Pset_create_intermediate_group(parents, 1);
    H5Pset_obj_track_times(list, false);
    *group = H5Gcreate2(w->file, item->group, parents, list, H5P_DEFAULT);
    return *group < 0 ? failed(w, item) : QL_OK;
}

static ql_status write_attribute(const writer *w, const h5_item *item, hid_t group) {
    const void *data = &item->value;
    hid_t type = H5T_STD_U64LE, memory = H5T_NATIVE_INT64, space = H5Screate(H5S_SCALAR);
    if (item->kind != H5_INT) {
        type = memory = H5Tcopy(H5T_C_S1);
        if (H5Tset_size(type, H5T_VARIABLE) < 0 || H5Tset_cset(type, H5T_CSET_UTF8) < 0) return failed(w, item);
        data = &item->text;
    }
    if (item->kind == H5_TEXTS) {
        hsize_t count = 0;
        while (item->texts[count]) count++;
        space = H5Screate_simple(1, &count, NULL);
        data = item->texts;
    }
    hid_t attribute = H5Acreate2(group, item->name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    return attribute < 0 || H5Awrite(attribute, memory, data) < 0 || H5Aclose(attribute) < 0 ? failed(w, item) : QL_OK;
}

/* About 1 MiB a chunk, whole rows where they fit; fletcher32 makes a damaged chunk an error instead of numbers.  No times: equal
 * content is to be equal bytes. */
static hid_t storage_list(const h5_item *item, const hsize_t dims[2]) {
    hsize_t chunk[2] = {TILE, TILE};
    if (item->storage != H5_UPPER) {
        chunk[1] = item->rank == 2 && dims[1] < CHUNK_ELEMENTS ? dims[1] : CHUNK_ELEMENTS;
        chunk[0] = item->rank == 1                          ? CHUNK_ELEMENTS
                   : CHUNK_ELEMENTS / chunk[1] < CHUNK_ROWS ? CHUNK_ELEMENTS / chunk[1]
                                                            : CHUNK_ROWS;
    }
    for (int i = 0; i < item->rank; i++)
        if (chunk[i] > dims[i]) chunk[i] = dims[i];
    hid_t list = H5Pcreate(H5P_DATASET_CREATE);
    bool compress = item->storage == H5_COMPRESSED;
    if (list < 0 || H5Pset_obj_track_times(list, false) < 0 || H5Pset_chunk(list, item->rank, chunk) < 0 ||
        (compress && H5Pset_shuffle(list) < 0) || (compress && H5Pset_deflate(list, 1) < 0) ||
        H5Pset_fletcher32(list) < 0)
        return -1;
    return list;
}

static herr_t write_region(hid_t dataset, hid_t memory, hid_t space, const h5_item *item, const hsize_t start[2],
                           const hsize_t count[2]) {
    if (H5Sselect_hyperslab(space, H5S_SELECT_SET, start, NULL, count, NULL) < 0) return -1;
    return H5Dwrite(dataset, memory, space, space, H5P_DEFAULT, item->data);
}

/* Tiles below the diagonal are never written: they take no space and read as zero. */
static herr_t write_upper(hid_t dataset, hid_t memory, hid_t space, const h5_item *item, const hsize_t dims[2]) {
    for (hsize_t row = 0; row < dims[0]; row += TILE)
        for (hsize_t col = row; col < dims[1]; col += TILE) {
            hsize_t start[2] = {row, col};
            hsize_t count[2] = {dims[0] - row < TILE ? dims[0] - row : TILE,
                                dims[1] - col < TILE ? dims[1] - col : TILE};
            if (write_region(dataset, memory, space, item, start, count) < 0) return -1;
        }
    return 0;
}

static ql_status write_array(const writer *w, const h5_item *item, hid_t group) {
    static const char *const upper_name = "upper";
    hid_t file_types[QL_DTYPE_COUNT] = {[QL_F64] = H5T_IEEE_F64LE,
                                        [QL_F32] = H5T_IEEE_F32LE,
                                        [QL_I32] = H5T_STD_I32LE,
                                        [QL_I64] = H5T_STD_I64LE,
                                        [QL_U64] = H5T_STD_U64LE};
    hid_t type = file_types[item->dtype];
    hsize_t dims[2] = {(hsize_t)item->dims[0], (hsize_t)item->dims[1]}, start[2] = {0, 0}, most[2] = {dims[0], dims[1]};
    if (item->extendable) most[0] = H5S_UNLIMITED;
    hid_t space = H5Screate_simple(item->rank, dims, most), list = storage_list(item, dims);
    hid_t dataset =
        space < 0 || list < 0 ? -1 : H5Dcreate2(group, item->name, type, space, H5P_DEFAULT, list, H5P_DEFAULT);
    if (dataset < 0) return failed(w, item);
    herr_t result = item->storage == H5_UPPER ? write_upper(dataset, type, space, item, dims)
                                              : write_region(dataset, type, space, item, start, dims);
    if (result < 0) return failed(w, item);
    h5_item triangle = {.kind = H5_TEXT, .group = item->group, .name = "triangle", .text = upper_name};
    if (item->storage == H5_UPPER) QL_TRY(write_attribute(w, &triangle, dataset));
    return H5Dclose(dataset) < 0 ? failed(w, item) : QL_OK;
}

static ql_status write_item(const writer *w, const h5_item *item) {
    hid_t group;
    if (item->absent) return QL_OK;
    if (ql_fault("write")) return ql_fail_errno("%s: %s cannot be written", w->path, item->name);
    if (item->kind == H5_INT && item->value < 0)
        return ql_fail(QL_INVALID, "%s: %s is %lld", w->path, item->name, (long long)item->value);
    QL_TRY(open_group(w, item, &group));
    QL_TRY(item->kind == H5_ARRAY ? write_array(w, item, group) : write_attribute(w, item, group));
    return H5Gclose(group) < 0 ? failed(w, item) : QL_OK;
}

static ql_status write_file(writer *w, const h5_item *items, int count) {
    hid_t access;
    QL_TRY(h5_setup(w->path, &access));
    w->file = ql_fault("open") ? -1 : H5Fcreate(w->path, H5F_ACC_TRUNC, H5P_DEFAULT, access);
    if (w->file < 0) return h5_fail(QL_IO, "%s: cannot be created", w->path);
    for (int i = 0; i < count; i++) QL_TRY(write_item(w, &items[i]));
    if (H5Fflush(w->file, H5F_SCOPE_GLOBAL) < 0 || H5Fclose(w->file) < 0)
        return h5_fail(QL_IO, "%s: cannot be closed", w->path);
    return QL_OK;
}

_Noreturn void h5_write_child(const char *path, const h5_item *items, int count, int out) {
    writer w = {.path = path};
    ql_status status = write_file(&w, items, count);
    if (status == QL_OK) h5_send(out, (h5_message){.status = QL_OK}, NULL);
    h5_end(out, status);
}
