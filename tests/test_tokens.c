/* Token files: what others write is read, what cannot be is refused, what could harm never happens. */
#include "tests/scratch.h"

#include <hdf5.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "formats/tokens.h"
#include "host/fault.h"
#include "tests/h5_tricks.h"

static ql_status read_quietly(const char *path, token_file *out) {
    ql_arena *arena;
    assert_ok(ql_arena_open(NULL, &arena));
    ql_status status = tokens_read(path, arena, out);
    ql_arena_close(arena);
    return status;
}

/* ---- a file written with plain HDF5 calls, with one thing about it changed -------------------------------------------------- */

typedef struct variant {
    const char *format, *hash; /* NULL: the right ones */
    int64_t version, complete, vocab, seq_len;
    int32_t ids[3][4], length[3];
    int rows, lengths; /* 0: 3 */
    bool no_ids, wide_ids, fixed_text;
} variant;

static const variant good = {.version = 1,
                             .complete = 1,
                             .vocab = 10,
                             .seq_len = 4,
                             .ids = {{1, 2, 3, 4}, {5, 6, -1, -1}, {7, 8, 9, -1}},
                             .length = {4, 2, 3}};

static void put_text(hid_t file, const char *name, const char *text, bool fixed) {
    hid_t type = H5Tcopy(H5T_C_S1), space = H5Screate(H5S_SCALAR);
    H5Tset_size(type, fixed ? strlen(text) + 1 : H5T_VARIABLE);
    H5Tset_cset(type, H5T_CSET_UTF8);
    hid_t attribute = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Awrite(attribute, type, fixed ? (const void *)text : &text) >= 0);
    H5Aclose(attribute), H5Sclose(space), H5Tclose(type);
}

static void put_int(hid_t file, const char *name, int64_t value, hid_t type) {
    hid_t space = H5Screate(H5S_SCALAR), attribute = H5Acreate2(file, name, type, space, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Awrite(attribute, H5T_NATIVE_INT64, &value) >= 0);
    H5Aclose(attribute), H5Sclose(space);
}

static void put_ids(hid_t file, const variant *v) {
    hsize_t dims[2] = {v->rows ? (hsize_t)v->rows : 3, 4};
    hid_t space = H5Screate_simple(2, dims, NULL), type = v->wide_ids ? H5T_STD_I64BE : H5T_STD_I32LE;
    hid_t ids = H5Dcreate2(file, "input_ids", type, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(H5Dwrite(ids, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, v->ids) >= 0);
    H5Dclose(ids), H5Sclose(space);
}

static void craft(const char *path, const variant *v) {
    H5Eset_auto2(H5E_DEFAULT, NULL, NULL);
    hid_t file = H5Fcreate(path, H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
    assert_true(file >= 0);
    put_text(file, "format", v->format ? v->format : "calib-tokens", v->fixed_text);
    put_text(file, "tokenizer_sha256", v->hash ? v->hash : "", v->fixed_text);
    put_int(file, "version", v->version, H5T_STD_U32LE);
    put_int(file, "complete", v->complete, H5T_STD_I8LE);
    put_int(file, "vocab_size", v->vocab, H5T_STD_I64LE);
    put_int(file, "seq_len", v->seq_len, H5T_STD_U16BE);
    hsize_t count = v->lengths ? (hsize_t)v->lengths : v->rows ? (hsize_t)v->rows : 3;
    hid_t space = H5Screate_simple(1, &count, NULL);
    hid_t length = H5Dcreate2(file, "length", H5T_STD_I32LE, space, H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
    H5Dwrite(length, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, v->length);
    H5Dclose(length), H5Sclose(space);
    if (!v->no_ids) put_ids(file, v);
    assert_true(H5Fclose(file) >= 0);
}

static void expect_refusal(void **state, variant v, const char *words) {
    const char *path = scratch_path(state, "variant.h5");
    token_file out;
    craft(path, &v);
    assert_refused(read_quietly(path, &out), QL_FORMAT, words);
    assert_non_null(strstr(ql_last_error(), path));
}

/* ---- honest files ----------------------------------------------------------------------------------------------------------- */

static void check_good(const token_file *tokens) {
    static const int32_t ids[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    static const int64_t start[] = {0, 4, 6, 9};
    assert_int_equal(tokens->n_seq, 3);
    assert_int_equal(tokens->seq_len, 4);
    assert_int_equal(tokens->vocab, 10);
    assert_int_equal(tokens->n_tokens, 9);
    assert_memory_equal(tokens->ids, ids, sizeof ids);
    assert_memory_equal(tokens->start, start, sizeof start);
}

static void files_of_other_writers_are_read(void **state) {
    ql_arena *arena;
    token_file out;
    assert_ok(ql_arena_open(NULL, &arena));
    variant plain = good, fixed = good, wide = good;
    fixed.fixed_text = wide.wide_ids = true;
    const variant *all[] = {&plain, &fixed, &wide};
    for (int i = 0; i < 3; i++) {
        craft(scratch_path(state, "foreign.h5"), all[i]);
        assert_ok(tokens_read(scratch_path(state, "foreign.h5"), arena, &out));
        check_good(&out);
    }
    assert_ok(tokens_read("demo/demo-calib.h5", arena, &out)); /* h5py: variable strings, gzip, shuffle, fletcher32 */
    assert_int_equal(out.n_seq, 128);
    assert_int_equal(out.n_tokens, 128 * 256);
    assert_int_equal(out.vocab, 4096);
    assert_int_equal(strlen(out.tokenizer_sha256), 64);
    ql_arena_close(arena);
}

static void round_trip_of_ragged_rows(void **state) {
    static const int32_t ids[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    static const int64_t start[] = {0, 4, 6, 9};
    token_file in = {.n_seq = 3, .seq_len = 4, .vocab = 10, .ids = (int32_t *)ids, .start = (int64_t *)start}, out;
    memset(in.tokenizer_sha256, 'a', 64);
    const char *path = scratch_path(state, "tokens.h5");
    ql_arena *arena;
    assert_ok(ql_arena_open(NULL, &arena));
    assert_ok(tokens_write(path, &in, "a source", 42));
    assert_ok(tokens_read(path, arena, &out));
    check_good(&out);
    assert_string_equal(out.tokenizer_sha256, in.tokenizer_sha256);
    int32_t raw[3][4]; /* the padding, seen by HDF5 alone */
    hid_t file = H5Fopen(path, H5F_ACC_RDONLY, H5P_DEFAULT), set = H5Dopen2(file, "input_ids", H5P_DEFAULT);
    assert_true(H5Dread(set, H5T_NATIVE_INT32, H5S_ALL, H5S_ALL, H5P_DEFAULT, raw) >= 0);
    assert_memory_equal(raw, good.ids, sizeof raw);
    H5Dclose(set), H5Fclose(file);
    ql_arena_close(arena);
}

/* HDF5 would put the time of writing into the file. */
static void equal_content_is_equal_bytes(void **state) {
    size_t size[2];
    char *bytes[2];
    for (int i = 0; i < 2; i++) {
        static const int32_t ids[] = {1, 2, 3};
        static const int64_t start[] = {0, 1, 3};
        token_file in = {.n_seq = 2, .seq_len = 2, .vocab = 10, .ids = (int32_t *)ids, .start = (int64_t *)start};
        const char *path = scratch_path(state, "tokens.h5");
        assert_ok(tokens_write(path, &in, "", 0));
        bytes[i] = scratch_read(path, &size[i]);
        if (i == 0) usleep(1100000); /* such times have whole seconds */
    }
    assert_int_equal(size[0], size[1]);
    assert_memory_equal(bytes[0], bytes[1], size[0]);
    free(bytes[0]);
    free(bytes[1]);
}

/* ---- wrong content ----------------------------------------------------------------------------------------------------------- */

static void wrong_rows_are_named(void **state) {
    variant v = good;
    v.ids[1][1] = 10;
    expect_refusal(state, v, "row 1, position 1: token 10 is not in the vocabulary of 10");
    v.ids[1][1] = -7;
    expect_refusal(state, v, "row 1, position 1: token -7");
    v = good, v.ids[2][3] = 0;
    expect_refusal(state, v, "row 2, position 3: padding is 0, not -1");
    v = good, v.length[2] = 4;
    expect_refusal(state, v, "row 2, position 3: token -1");
    v = good, v.length[2] = 5;
    expect_refusal(state, v, "row 2 has length 5, allowed are 1 to 4");
    v = good, v.length[0] = 0;
    expect_refusal(state, v, "row 0 has length 0");
    v = good, v.rows = 1, v.length[0] = 1, v.ids[0][1] = v.ids[0][2] = v.ids[0][3] = -1;
    expect_refusal(state, v, "single token");
}

static void wrong_headers_are_named(void **state) {
    variant v = good;
    v.format = "calib-stats";
    expect_refusal(state, v, "attribute format is \"calib-stats\", expected \"calib-tokens\"");
    v = good, v.version = 2;
    expect_refusal(state, v, "attribute version is 2");
    v = good, v.complete = 0;
    expect_refusal(state, v, "attribute complete is 0");
    v = good, v.vocab = 0;
    expect_refusal(state, v, "attribute vocab_size is 0");
    v = good, v.vocab = (int64_t)1 << 40;
    expect_refusal(state, v, "attribute vocab_size is");
    v = good, v.seq_len = 5;
    expect_refusal(state, v, "rows of 4 tokens, but seq_len is 5");
    v = good, v.lengths = 2;
    expect_refusal(state, v, "3 rows, but 2 lengths");
    v = good, v.hash = "ABC";
    expect_refusal(state, v, "tokenizer_sha256 \"ABC\"");
    v = good, v.no_ids = true;
    expect_refusal(state, v, "dataset input_ids is missing");
}

/* ---- tricks -------------------------------------------------------------------------------------------------------------------- */

/* The file that nobody may read is as good as the one that leads to it: what is refused is the way. */
static void tricks_are_refused(void **state) {
    token_file out;
    const char *path = scratch_path(state, "trick.h5"), *secret = scratch_path(state, "secret.h5");
    craft(secret, &good);
    for (const h5_trick *trick = h5_tricks; trick->name; trick++)
        for (int set = 0; set < 2; set++) {
            craft(path, &good);
            assert_ok(h5_trick_play(trick, path, set ? "/length" : "/input_ids", secret));
            ql_status status = read_quietly(path, &out);
            if (status != QL_FORMAT || !strstr(ql_last_error(), trick->words) || !strstr(ql_last_error(), path))
                fail_msg("%s: %s: %s", trick->name, ql_status_name(status), ql_last_error());
        }
}

static void other_kinds_of_files_are_refused(void **state) {
    token_file out;
    const char *path = scratch_path(state, "x");
    assert_refused(read_quietly(path, &out), QL_MISSING, "x");
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_refused(read_quietly(path, &out), QL_FORMAT, "not a regular file");
    unlink(path);
    assert_refused(read_quietly(*state, &out), QL_FORMAT, "not a regular file");
    scratch_write(path, "", 0);
    assert_refused(read_quietly(path, &out), QL_FORMAT, "not an HDF5 file");
    scratch_write(path, "{\"text\": 1}\n", 12);
    assert_refused(read_quietly(path, &out), QL_FORMAT, "not an HDF5 file");
}

/* ---- damage -------------------------------------------------------------------------------------------------------------------- */

/* Refused, or read as if nothing had happened (the byte carried nothing). */
static void check_damaged(const char *path, const char *what, size_t at) {
    ql_arena *arena;
    token_file out;
    assert_ok(ql_arena_open(NULL, &arena));
    ql_status status = tokens_read(path, arena, &out);
    if (status == QL_OK) check_good(&out);
    else if (status != QL_FORMAT) fail_msg("%s at %zu: %s: %s", what, at, ql_status_name(status), ql_last_error());
    ql_arena_close(arena);
}

static void damage_is_refused_or_harmless(void **state) {
    static const int32_t ids[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    static const int64_t start[] = {0, 4, 6, 9};
    token_file in = {.n_seq = 3, .seq_len = 4, .vocab = 10, .ids = (int32_t *)ids, .start = (int64_t *)start};
    const char *path = scratch_path(state, "tokens.h5"), *bad = scratch_path(state, "bad.h5");
    assert_ok(tokens_write(path, &in, "a source", 42));
    size_t size;
    char *bytes = scratch_read(path, &size);
    /* One bit in each of so many bytes, evenly spread. */
    const char *tier = getenv("QALIB_TIER");
    size_t step = size / (tier && strcmp(tier, "full") == 0 ? 10000 : 400) + 1;
    for (size_t at = 0; at < size; at += step) {
        char bit = (char)(1 << at % 8);
        bytes[at] ^= bit;
        scratch_write(bad, bytes, size);
        check_damaged(bad, "bit flip", at);
        bytes[at] ^= bit;
    }
    for (size_t at = 0; at < size; at += 4 * step) {
        scratch_write(bad, bytes, at);
        check_damaged(bad, "truncation", at);
    }
    free(bytes);
}

/* ---- writing on a bad disk ------------------------------------------------------------------------------------------------------ */

static ql_status write_some(const char *path) {
    enum { ROWS = 40, LENGTH = 300 };
    static int32_t ids[ROWS * LENGTH];
    static int64_t start[ROWS + 1];
    for (int i = 0; i < ROWS * LENGTH; i++) ids[i] = (int32_t)((uint32_t)i * 2654435761u >> 17);
    for (int i = 0; i <= ROWS; i++) start[i] = i * LENGTH;
    return tokens_write(
        path, &(token_file){.n_seq = ROWS, .seq_len = LENGTH, .vocab = 1 << 15, .ids = ids, .start = start}, "", 0);
}

/* In a child, because the limit holds for the process: 0 failed cleanly, 1 wrote a file, 2 anything else. */
static int write_within(const char *path, rlim_t bytes) {
    pid_t child = fork();
    if (child == 0) {
        struct rlimit limit = {bytes, bytes};
        signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &limit);
        ql_status status = write_some(path);
        _exit(status == QL_OK ? 1 : status == QL_IO || status == QL_DISK ? 0 : 2);
    }
    int result;
    waitpid(child, &result, 0);
    return WIFEXITED(result) ? WEXITSTATUS(result) : 2;
}

static void a_full_disk_leaves_nothing_behind(void **state) {
    const char *path = scratch_path(state, "tokens.h5"), *temporary = scratch_path(state, "tokens.h5.tmp");
    struct stat info;
    token_file out;
    assert_ok(write_some(path));
    assert_int_equal(stat(path, &info), 0);
    unlink(path);
    for (off_t limit = 0; limit < info.st_size; limit += info.st_size / 40) {
        assert_int_equal(write_within(path, (rlim_t)limit), 0);
        assert_false(ql_path_exists(path) || ql_path_exists(temporary));
    }
    assert_int_equal(write_within(path, (rlim_t)info.st_size), 1);
    assert_ok(read_quietly(path, &out));
}

static void failures_leave_the_old_file(void **state) {
#ifdef QL_FAULTS
    static const char *const sites[] = {"open", "write", "fsync", "rename", "malloc", "read"};
    const char *path = scratch_path(state, "tokens.h5"), *temporary = scratch_path(state, "tokens.h5.tmp");
    scratch_write(path, "old", 3);
    for (size_t s = 0; s < sizeof sites / sizeof sites[0]; s++)
        for (int n = 1; n < 40; n++) {
            char setting[32];
            snprintf(setting, sizeof setting, "%s:%d", sites[s], n);
            ql_fault_set(setting);
            ql_status status = write_some(path);
            ql_fault_set(NULL);
            if (status == QL_OK) break;
            size_t size;
            char *bytes = scratch_read(path, &size);
            /* The directory's sync comes after the rename: then the new file stands, and is whole. */
            token_file out;
            if (size != 3) assert_ok(read_quietly(path, &out));
            free(bytes);
            assert_false(ql_path_exists(temporary));
        }
#else
    (void)state;
    print_message("skipped: needs a build with QALIB_FAULTS\n");
    skip();
#endif
}

/* ---- the model ------------------------------------------------------------------------------------------------------------------- */

static void the_models_tokenizer_decides(void **state) {
    int32_t ids[] = {1, 2, 9};
    int64_t start[] = {0, 1, 3};
    token_file tokens = {.n_seq = 2, .seq_len = 2, .vocab = 10, .n_tokens = 3, .ids = ids, .start = start};
    const char *dir = *state;
    assert_ok(tokens_check_model(&tokens, "t.h5", dir, 10)); /* no tokenizer there: a warning */
    assert_refused(tokens_check_model(&tokens, "t.h5", dir, 9), QL_FORMAT, "t.h5: row 1: token 9");
    scratch_write(scratch_path(state, "tokenizer.model"), "abc", 3);
    assert_ok(tokens_check_model(&tokens, "t.h5", dir, 10)); /* no hash in the file: a warning */
    strcpy(tokens.tokenizer_sha256,
           "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"); /* FIPS 180: "abc" */
    assert_ok(tokens_check_model(&tokens, "t.h5", dir, 10));
    scratch_write(scratch_path(state, "tokenizer.json"), "{}", 2); /* comes before tokenizer.model */
    assert_refused(tokens_check_model(&tokens, "t.h5", dir, 10), QL_FORMAT, "another tokenizer");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        scratch_test(files_of_other_writers_are_read),   scratch_test(round_trip_of_ragged_rows),
        scratch_test(equal_content_is_equal_bytes),      scratch_test(wrong_rows_are_named),
        scratch_test(wrong_headers_are_named),           scratch_test(tricks_are_refused),
        scratch_test(other_kinds_of_files_are_refused),  scratch_test(damage_is_refused_or_harmless),
        scratch_test(a_full_disk_leaves_nothing_behind), scratch_test(failures_leave_the_old_file),
        scratch_test(the_models_tokenizer_decides),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
