/* A temporary directory per test: cmocka_unit_test_setup_teardown(test, scratch_make, scratch_remove), then *state is its path. */
#ifndef TESTS_SCRATCH_H
#define TESTS_SCRATCH_H

#include "host/file.h"
#include "tests/test.h"

#define scratch_test(test) cmocka_unit_test_setup_teardown(test, scratch_make, scratch_remove)

static inline int scratch_make(void **state) {
    const char *parent = getenv("TMPDIR");
    char *path = malloc(4096);
    if (!path) return -1;
    snprintf(path, 4096, "%s/qalib-test-XXXXXX", parent ? parent : "/tmp");
    *state = path;
    return mkdtemp(path) ? 0 : -1;
}

static inline int scratch_remove(void **state) {
    ql_status status = ql_dir_remove(*state);
    free(*state);
    return status == QL_OK ? 0 : -1;
}

/* dir/name, valid until the fourth call after this one. */
static inline const char *scratch_path(void **state, const char *name) {
    static char paths[4][4096];
    static int turn;
    char *path = paths[turn++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", (const char *)*state, name);
    return path;
}

/* Whole files; *size bytes to free. */
static inline char *scratch_read(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    char *data = malloc(*size + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, *size, file), *size);
    data[*size] = 0;
    fclose(file);
    return data;
}

static inline void scratch_write(const char *path, const void *data, size_t size) {
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(data, 1, size, file), size);
    assert_int_equal(fclose(file), 0);
}

#endif
