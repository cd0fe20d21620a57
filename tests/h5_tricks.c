#include "tests/h5_tricks.h"

#include <hdf5.h>

struct h5_dataset {
    hid_t file, type, list; /* list: properties of the dataset that takes its place */
    int rank;
    hsize_t dims[2];
    const char *path, *secret;
};

static const hsize_t unlimited[2] = {H5S_UNLIMITED, H5S_UNLIMITED};

static hsize_t row_bytes(const h5_dataset *d) { return H5Tget_size(d->type) * (d->rank == 2 ? d->dims[1] : 1); }

/* A dataset of that many rows; rows of a chunk, 0: none. */
static int create(const h5_dataset *d, hid_t type, hsize_t rows, hsize_t chunk_rows) {
    hsize_t dims[2] = {rows, d->dims[1]}, chunk[2] = {chunk_rows, d->dims[1]};
    if (chunk_rows && H5Pset_chunk(d->list, d->rank, chunk) < 0) return -1;
    hid_t space = H5Screate_simple(d->rank, dims, chunk_rows ? unlimited : NULL);
    hid_t made = H5Dcreate2(d->file, d->path, type, space, H5P_DEFAULT, d->list, H5P_DEFAULT);
    H5Sclose(space);
    return made < 0 ? -1 : H5Dclose(made);
}

/* ---- out of the file, and round in it ---------------------------------------------------------------------------------------- */

static int soft_link(const h5_dataset *d) {
    if (create(d, d->type, d->dims[0], 0) < 0 || H5Lmove(d->file, d->path, d->file, "/moved", 0, 0) < 0) return -1;
    return H5Lcreate_soft("/moved", d->file, d->path, H5P_DEFAULT, H5P_DEFAULT);
}
static int external_link(const h5_dataset *d) {
    return H5Lcreate_external(d->secret, d->path, d->file, d->path, H5P_DEFAULT, H5P_DEFAULT);
}
static int external_storage(const h5_dataset *d) {
    return H5Pset_external(d->list, d->secret, 0, H5F_UNLIMITED) < 0 ? -1 : create(d, d->type, d->dims[0], 0);
}
static int virtual_dataset(const h5_dataset *d) {
    hid_t space = H5Screate_simple(d->rank, d->dims, NULL);
    int failed = H5Pset_virtual(d->list, space, d->secret, d->path, space);
    H5Sclose(space);
    return failed < 0 ? -1 : create(d, d->type, d->dims[0], 0);
}
static int cyclic_group(const h5_dataset *d) {
    return H5Lcreate_hard(d->file, "/", d->file, d->path, H5P_DEFAULT, H5P_DEFAULT);
}

/* ---- beyond memory ------------------------------------------------------------------------------------------------------------- */

static int four_terabytes(const h5_dataset *d) { return create(d, d->type, ((hsize_t)1 << 42) / row_bytes(d), 64); }

/* A chunk of a gigabyte, of which the few rows that there are could be honest. */
static int giant_chunk(const h5_dataset *d) {
    if (H5Pset_deflate(d->list, 9) < 0) return -1;
    return create(d, d->type, d->dims[0], ((hsize_t)1 << 30) / row_bytes(d));
}

/* A gigabyte of zeros, which deflate to a megabyte. */
static int gzip_bomb(const h5_dataset *d) {
    hsize_t chunk = ((hsize_t)1 << 22) / row_bytes(d);
    if (H5Pset_deflate(d->list, 9) < 0 || H5Pset_alloc_time(d->list, H5D_ALLOC_TIME_EARLY) < 0) return -1;
    return create(d, d->type, 256 * chunk, chunk);
}

/* ---- what is not asked for ------------------------------------------------------------------------------------------------------- */

static int foreign_filter(const h5_dataset *d) {
    return H5Pset_nbit(d->list) < 0 ? -1 : create(d, d->type, d->dims[0], d->dims[0]);
}
static int other_type(const h5_dataset *d) {
    hid_t type = H5Tget_class(d->type) == H5T_FLOAT ? H5T_STD_I32LE : H5T_IEEE_F32LE;
    return create(d, type, d->dims[0], 0);
}
static int variable_length(const h5_dataset *d) {
    hid_t type = H5Tvlen_create(d->type);
    int made = create(d, type, d->dims[0], 0);
    H5Tclose(type);
    return made;
}
static int other_rank(const h5_dataset *d) {
    h5_dataset other = *d;
    other.rank = 3 - d->rank;
    other.dims[1] = 1;
    return create(&other, d->type, d->dims[0], 0);
}

const h5_trick h5_tricks[] = {
    {"soft_link", "link to elsewhere", soft_link},
    {"external_link", "link to elsewhere", external_link},
    {"external_storage", "lies in another file", external_storage},
    {"virtual_dataset", "is virtual", virtual_dataset},
    {"cyclic_group", "cannot be opened", cyclic_group},
    {"four_terabytes", "is more than a file of", four_terabytes},
    {"giant_chunk", "chunks of more than", giant_chunk},
    {"gzip_bomb", "is more than a file of", gzip_bomb},
    {"foreign_filter", "uses filter 5", foreign_filter},
    {"other_type", "is not of type", other_type},
    {"variable_length", "is not of type", variable_length},
    {"other_rank", "dimension", other_rank},
    {NULL, NULL, NULL},
};

static int replace(const h5_trick *trick, h5_dataset *d) {
    hid_t old = H5Dopen2(d->file, d->path, H5P_DEFAULT), space = H5Dget_space(old);
    d->dims[0] = d->dims[1] = 1;
    d->rank = H5Sget_simple_extent_ndims(space);
    d->type = H5Dget_type(old);
    d->list = H5Pcreate(H5P_DATASET_CREATE);
    if (old < 0 || d->rank < 1 || d->rank > 2 || H5Sget_simple_extent_dims(space, d->dims, NULL) < 0) return -1;
    H5Sclose(space), H5Dclose(old);
    if (H5Aexists(d->file, "content_sha256") > 0) H5Adelete(d->file, "content_sha256");
    if (H5Ldelete(d->file, d->path, H5P_DEFAULT) < 0 || trick->play(d) < 0) return -1;
    H5Pclose(d->list), H5Tclose(d->type);
    return 0;
}

ql_status h5_trick_play(const h5_trick *trick, const char *file, const char *path, const char *secret) {
    h5_dataset d = {.file = H5Fopen(file, H5F_ACC_RDWR, H5P_DEFAULT), .path = path, .secret = secret};
    if (d.file < 0) return ql_fail(QL_IO, "%s: cannot be opened", file);
    int failed = replace(trick, &d);
    if (H5Fclose(d.file) < 0 || failed < 0) return ql_fail(QL_IO, "%s: no %s", file, trick->name);
    return QL_OK;
}
