/* GGUF container: bytes made by hand, so that a reader and a writer with the same mistake do not agree. */
#include "tests/make.h"
#include "tests/test.h"

#include "formats/gguf.h"

enum { ROOM = 16384 };

/* A file as it grows. */
typedef struct bytes {
    uint8_t data[ROOM];
    size_t size;
} bytes;

static void number(bytes *b, uint64_t value, int size) {
    for (int i = 0; i < size; i++) b->data[b->size++] = (uint8_t)(value >> (8 * i));
}

static void text(bytes *b, const char *value) {
    number(b, strlen(value), 8);
    memcpy(b->data + b->size, value, strlen(value));
    b->size += strlen(value);
}

static void pad(bytes *b, size_t alignment) {
    while (b->size % alignment) b->data[b->size++] = 0;
}

static void head(bytes *b, uint64_t version, uint64_t tensors, uint64_t keys) {
    memcpy(b->data, "GGUF", 4);
    b->size = 4;
    number(b, version, 4), number(b, tensors, 8), number(b, keys, 8);
}

static void key_u32(bytes *b, const char *key, uint64_t value) { text(b, key), number(b, 4, 4), number(b, value, 4); }

static void tensor(bytes *b, const char *name, uint64_t k, uint64_t n, uint64_t type, uint64_t offset) {
    text(b, name), number(b, 2, 4), number(b, k, 8), number(b, n, 8), number(b, type, 4), number(b, offset, 8);
}

static void data(bytes *b, size_t size) {
    for (size_t i = 0; i < size; i++) b->data[b->size++] = (uint8_t)(i + 1);
}

/* ---- files that are in order ------------------------------------------------------------------------------------------------ */

static void good_empty(bytes *b) { head(b, 3, 0, 0); }

static void good_version_2(bytes *b) {
    head(b, 2, 1, 0), tensor(b, "a", 8, 3, 0, 0);
    pad(b, 32), data(b, 96);
}

static void good_two_tensors(bytes *b) {
    head(b, 3, 2, 1), key_u32(b, "some.key", 7);
    tensor(b, "a", 32, 1, 2, 0), tensor(b, "b", 1, 1, 0, 32); /* 18 bytes of Q4_0, padded */
    pad(b, 32), data(b, 18), pad(b, 32), data(b, 4), pad(b, 32);
}

static void good_last_not_padded(bytes *b) {
    head(b, 3, 1, 0), tensor(b, "a", 32, 1, 2, 0);
    pad(b, 32), data(b, 18);
}

static void good_other_alignment(bytes *b) {
    head(b, 3, 2, 1), key_u32(b, "general.alignment", 8);
    tensor(b, "a", 1, 1, 0, 0), tensor(b, "b", 1, 1, 0, 8);
    pad(b, 8), data(b, 4), pad(b, 8), data(b, 4), pad(b, 8);
}

static void good_alignment_1(bytes *b) {
    head(b, 3, 2, 1), key_u32(b, "general.alignment", 1);
    tensor(b, "a", 1, 3, 24, 0), tensor(b, "b", 1, 1, 0, 3); /* three bytes, then four */
    data(b, 7);
}

/* A tensor of every type, with one to four dimensions. */
static void good_types(bytes *b) {
    uint64_t count = 0, offset = 0;
    for (uint32_t type = 0; type < 64; type++) count += gguf_type_of(type) != NULL;
    head(b, 3, count, 0);
    for (uint32_t type = 0; type < 64; type++) {
        const gguf_type *t = gguf_type_of(type);
        char name[8] = {'t', (char)('0' + type / 8), (char)('0' + type % 8), 0};
        uint64_t rank = 1 + type % 4;
        if (!t) continue;
        text(b, name), number(b, rank, 4), number(b, (uint64_t)t->count, 8);
        for (uint64_t i = 1; i < rank; i++) number(b, 1, 8);
        number(b, type, 4), number(b, offset, 8);
        offset += ((uint64_t)t->bytes + 31) / 32 * 32;
    }
    pad(b, 32), data(b, offset);
}

static void good_every_kind(bytes *b) {
    const int sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    head(b, 3, 0, 24);
    for (int kind = 0; kind < 13; kind++) {
        char name[8] = {'k', (char)('a' + kind), 0};
        if (kind == 9) continue;
        text(b, name), number(b, (uint64_t)kind, 4);
        if (kind == 8) text(b, "words");
        else number(b, kind == 7 ? 1 : 5, sizes[kind]);
        name[0] = 'l';
        text(b, name), number(b, 9, 4), number(b, (uint64_t)kind, 4), number(b, 2, 8);
        for (int i = 0; i < 2; i++)
            if (kind == 8) text(b, i ? "" : "word");
            else number(b, 0, sizes[kind]);
    }
}

static void good_no_rows(bytes *b) {
    head(b, 3, 2, 0), tensor(b, "a", 256, 0, 12, 0), tensor(b, "b", 8, 1, 0, 0);
    pad(b, 32), data(b, 32);
}

/* ---- files that are not ------------------------------------------------------------------------------------------------------- */

static void bad_magic(bytes *b) { head(b, 3, 0, 0), b->data[3] = 'X'; }
static void bad_version_0(bytes *b) { head(b, 0, 0, 0); }
static void bad_version_1(bytes *b) { head(b, 1, 0, 0); }
static void bad_version_4(bytes *b) { head(b, 4, 0, 0); }
static void bad_big_endian(bytes *b) { head(b, 0x03000000, 0, 0); }
static void bad_tensor_count(bytes *b) { head(b, 3, UINT64_MAX, 0); }
static void bad_key_count(bytes *b) { head(b, 3, 0, UINT64_MAX); }
static void bad_cut_header(bytes *b) { head(b, 3, 0, 0), b->size = 20; }
static void bad_key_size(bytes *b) { head(b, 3, 0, 1), number(b, UINT64_MAX, 8), data(b, 20); }
static void bad_empty_key(bytes *b) { head(b, 3, 0, 1), key_u32(b, "", 1); }
static void bad_key_type(bytes *b) { head(b, 3, 0, 1), text(b, "a"), number(b, 13, 4), number(b, 0, 8); }
static void bad_key_twice(bytes *b) { head(b, 3, 0, 2), key_u32(b, "same", 1), key_u32(b, "same", 2); }
static void bad_string(bytes *b) { head(b, 3, 0, 1), text(b, "a"), number(b, 8, 4), number(b, 100, 8), data(b, 99); }
static void bad_array_type(bytes *b) {
    head(b, 3, 0, 1), text(b, "a"), number(b, 9, 4), number(b, 9, 4), number(b, 0, 8);
}
static void bad_array_count(bytes *b) { /* 2^61 values of 8 bytes: their product is 0 */
    head(b, 3, 0, 1), text(b, "a"), number(b, 9, 4), number(b, 10, 4), number(b, (uint64_t)1 << 61, 8);
}
static void bad_array_of_strings(bytes *b) {
    head(b, 3, 0, 1), text(b, "a"), number(b, 9, 4), number(b, 8, 4), number(b, 1000000, 8), data(b, 64);
}
static void bad_alignment(bytes *b) { head(b, 3, 0, 1), key_u32(b, "general.alignment", 13); }
static void bad_tensor_alignment(bytes *b) {
    head(b, 3, 1, 1), key_u32(b, "general.alignment", 13), tensor(b, "a", 8, 1, 0, 0);
}
static void bad_data_alignment(bytes *b) { bad_tensor_alignment(b), pad(b, 13), data(b, 39); }
static void bad_alignment_0(bytes *b) { head(b, 3, 0, 1), key_u32(b, "general.alignment", 0); }
static void bad_alignment_type(bytes *b) {
    head(b, 3, 0, 1), text(b, "general.alignment"), number(b, 10, 4), number(b, 32, 8);
}
static void bad_name_long(bytes *b) {
    head(b, 3, 1, 0), tensor(b, "0123456789012345678901234567890123456789012345678901234567890123", 1, 1, 0, 0);
    pad(b, 32), data(b, 32);
}
static void bad_dims(bytes *b) {
    head(b, 3, 1, 0), text(b, "a"), number(b, 5, 4);
    for (int i = 0; i < 5; i++) number(b, 1, 8);
    number(b, 0, 4), number(b, 0, 8), pad(b, 32), data(b, 32);
}
static void bad_no_dims(bytes *b) {
    head(b, 3, 1, 0), text(b, "a"), number(b, 0, 4), number(b, 0, 4), number(b, 0, 8), pad(b, 32), data(b, 32);
}
static void one(bytes *b, uint64_t k, uint64_t n, uint64_t type, uint64_t offset) {
    head(b, 3, 1, 0), tensor(b, "a", k, n, type, offset), pad(b, 32), data(b, 64);
}
static void bad_shape(bytes *b) { one(b, UINT64_MAX, 1, 0, 0); }
static void bad_elements(bytes *b) { one(b, (uint64_t)1 << 32, (uint64_t)1 << 32, 0, 0); }
static void bad_bytes(bytes *b) { one(b, (uint64_t)1 << 31, (uint64_t)1 << 31, 0, 0); }
static void bad_type(bytes *b) { one(b, 8, 1, 99, 0); }
static void bad_type_removed(bytes *b) { one(b, 32, 1, 4, 0); }
static void bad_row(bytes *b) { one(b, 200, 1, 12, 0); }
static void bad_offset(bytes *b) { one(b, 8, 1, 0, UINT64_MAX); }
static void bad_offset_alignment(bytes *b) { /* offsets of a file whose alignment would be 1 */
    head(b, 3, 2, 0), tensor(b, "a", 1, 1, 0, 0), tensor(b, "b", 1, 1, 0, 4), pad(b, 32), data(b, 64);
}
static void bad_offset_unaligned(bytes *b) { /* and its data right behind the header */
    head(b, 3, 2, 0), tensor(b, "a", 1, 1, 0, 0), tensor(b, "b", 1, 1, 0, 4), data(b, 64);
}
static void bad_name_twice(bytes *b) {
    head(b, 3, 2, 0), tensor(b, "a", 8, 1, 0, 0), tensor(b, "a", 8, 1, 0, 32), pad(b, 32), data(b, 64);
}
static void bad_order(bytes *b) {
    head(b, 3, 2, 0), tensor(b, "a", 8, 1, 0, 32), tensor(b, "b", 8, 1, 0, 0), pad(b, 32), data(b, 64);
}
static void bad_short(bytes *b) { one(b, 8, 3, 0, 0); }
static void bad_no_data(bytes *b) { head(b, 3, 1, 0), tensor(b, "a", 8, 1, 0, 0); }
static void bad_cut_tensor(bytes *b) { head(b, 3, 1, 0), tensor(b, "abcdefgh", 8, 1, 0, 0), b->size -= 3; }
static void bad_total(bytes *b) { /* bytes, almost 2^63 of them twice: their sum is beyond 2^64 with the padding */
    const uint64_t large = 0x7fffffffffffffc0;
    head(b, 3, 2, 0), tensor(b, "a", large, 1, 24, 0), tensor(b, "b", large, 1, 24, large);
    pad(b, 32), data(b, 64);
}

/* The 33 files of ggml's own test by its names, 26 of them bad; behind them those that it has not.  Where ggml's test leaves the data
 * away because it does not read them, they are here: qalib opens no file that is cut off. */
static const struct {
    const char *name;
    void (*make)(bytes *b);
    const char *words; /* of the sentence; NULL: accepted */
} files[] = {
    {"HEADER_EMPTY", good_empty, NULL},
    {"KV_SUCCESS", good_every_kind, NULL},
    {"TENSORS_SUCCESS", good_types, NULL},
    {"TENSORS_ZERO_DIM", good_no_rows, NULL},
    {"TENSORS_CUSTOM_ALIGN", good_alignment_1, NULL},
    {"DATA_SUCCESS", good_two_tensors, NULL},
    {"DATA_CUSTOM_ALIGN", good_other_alignment, NULL},
    {"HEADER_BAD_MAGIC", bad_magic, "does not begin with \"GGUF\""},
    {"HEADER_BAD_VERSION_0", bad_version_0, "version 0"},
    {"HEADER_BAD_VERSION_1", bad_version_1, "version 1, qalib reads 2 and 3"},
    {"HEADER_BAD_VERSION_FUTURE", bad_version_4, "version 4"},
    {"HEADER_BAD_N_TENSORS", bad_tensor_count, "-1 tensors, more than the file has room for"},
    {"HEADER_BAD_N_KV", bad_key_count, "-1 keys, more than the file has room for"},
    {"KV_BAD_KEY_SIZE", bad_key_size, "key 0: its name at byte 32"},
    {"KV_EMPTY_KEY", bad_empty_key, "key 0: its name is empty"},
    {"KV_BAD_TYPE", bad_key_type, "key \"a\": type 13 is none"},
    {"KV_DUPLICATE_KEY", bad_key_twice, "key \"same\" twice"},
    {"KV_BAD_ALIGN", bad_alignment, "general.alignment is 13, expected a power of two"},
    {"KV_WRONG_TYPE_ALIGN", bad_alignment_type, "general.alignment is u64, expected u32"},
    {"TENSORS_BAD_NAME_SIZE", bad_name_long, "its name has 64 bytes, at most 63"},
    {"TENSORS_BAD_N_DIMS", bad_dims, "tensor \"a\": 5 dimensions"},
    {"TENSORS_BAD_SHAPE", bad_shape, "tensor \"a\": dimension 0 is -1"},
    {"TENSORS_NE_TOO_BIG", bad_elements, "tensor \"a\": its shape has 2^63 elements or more"},
    {"TENSORS_NBYTES_TOO_BIG", bad_bytes, "tensor \"a\": it has 2^63 bytes or more"},
    {"TENSORS_BAD_TYPE", bad_type, "tensor \"a\": type 99"},
    {"TENSORS_BAD_OFFSET", bad_offset, "tensor \"a\" has offset 18446744073709551615, the one before ends at 0"},
    {"TENSORS_DUPLICATE_NAME", bad_name_twice, "tensor \"a\" twice"},
    {"TENSORS_BAD_ALIGN", bad_tensor_alignment, "general.alignment is 13, expected a power of two"},
    {"TENSORS_INCONSISTENT_ALIGN", bad_offset_alignment, "tensor \"b\" has offset 4, the one before ends at 32"},
    {"DATA_NOT_ENOUGH_DATA", bad_short, "tensor \"a\" ends 32 bytes behind the end"},
    {"DATA_BAD_ALIGN", bad_data_alignment, "general.alignment is 13, expected a power of two"},
    {"DATA_INCONSISTENT_ALIGN", bad_offset_unaligned, "tensor \"b\" has offset 4, the one before ends at 32"},
    {"DATA_MEM_SIZE_OVERFLOW", bad_total, "tensor \"a\" ends"},
    {"", good_version_2, NULL},
    {"", good_last_not_padded, NULL},
    {"", bad_big_endian, "big-endian"},
    {"", bad_cut_header, "keys at byte 16"},
    {"", bad_string, "key \"a\": string at byte"},
    {"", bad_array_type, "key \"a\": an array of arrays"},
    {"", bad_array_count, "key \"a\": array at byte"},
    {"", bad_array_of_strings, "key \"a\": an array of 1000000 strings"},
    {"", bad_alignment_0, "general.alignment is 0"},
    {"", bad_no_dims, "tensor \"a\": 0 dimensions"},
    {"", bad_type_removed, "tensor \"a\": type 4"},
    {"", bad_row, "tensor \"a\": rows of 200 values, a block of Q4_K has 256"},
    {"", bad_order, "tensor \"a\" has offset 32"},
    {"", bad_no_data, "the data begin beyond the end"},
    {"", bad_cut_tensor, "tensor \"abcdefgh\": offset at byte"},
};
enum { FILES = sizeof files / sizeof files[0] };

static void gguf_verdicts(void **state) {
    make_place *p = *state;
    static bytes b;
    int good = 0, bad = 0;
    for (int i = 0; i < FILES; i++) {
        gguf_file file;
        b.size = 0;
        files[i].make(&b);
        make_file(p->dir, MAKE_PLACE_FILE, b.data, b.size);
        ql_status status = gguf_open(p->path, p->arena, &file);
        if (status == QL_OK) gguf_close(&file);
        if (!files[i].words && status != QL_OK) fail_msg("file %d %s: %s", i, files[i].name, ql_last_error());
        if (files[i].words && (status != QL_FORMAT || !strstr(ql_last_error(), files[i].words)))
            fail_msg("file %d %s: expected \"%s\", got %s", i, files[i].name, files[i].words,
                     status == QL_OK ? "success" : ql_last_error());
        if (files[i].words) assert_non_null(strstr(ql_last_error(), p->path));
        if (files[i].name[0]) *(files[i].words ? &bad : &good) += 1;
    }
    assert_int_equal(good, 7), assert_int_equal(bad, 26);
}

/* Wherever a file ends early, something is missing; one byte more at the end is nobody's. */
static void gguf_cut_anywhere(void **state) {
    make_place *p = *state;
    static bytes b;
    good_two_tensors(&b);
    size_t needed = b.size - 28; /* the padding of the last tensor may be missing */
    for (size_t size = 0; size < b.size; size++) {
        gguf_file file;
        make_file(p->dir, MAKE_PLACE_FILE, b.data, size);
        ql_status status = gguf_open(p->path, p->arena, &file);
        assert_int_equal(status, size < needed ? QL_FORMAT : QL_OK);
        gguf_close(&file);
    }
}

static void gguf_values(void **state) {
    make_place *p = *state;
    static bytes b;
    gguf_file file;
    int64_t integer = -1;
    double real = -1;
    char *words;
    good_every_kind(&b);
    make_file(p->dir, MAKE_PLACE_FILE, b.data, b.size);
    assert_ok(gguf_open(p->path, p->arena, &file));
    const char *integers[] = {"ka", "kb", "kc", "kd", "ke", "kf", "kk", "kl"};
    for (int i = 0; i < 8; i++) {
        integer = -1;
        assert_ok(gguf_int(&file, integers[i], 0, 10, &integer));
        assert_int_equal(integer, 5);
    }
    assert_refused(gguf_int(&file, "ka", 6, 10, &integer), QL_FORMAT, "\"ka\" is 5, expected 6 .. 10");
    assert_refused(gguf_int(&file, "kg", 0, 10, &integer), QL_FORMAT, "\"kg\" is f32, expected an integer");
    assert_refused(gguf_int(&file, "none", 0, 10, &integer), QL_FORMAT, "\"none\" is missing");
    assert_ok(gguf_int_or(&file, "none", 0, 10, &integer));
    assert_ok(gguf_real(&file, "kg", &real));
    assert_true(real == 5 * 0x1p-149); /* the bits of 5 */
    assert_ok(gguf_real(&file, "km", &real));
    assert_true(real == 5 * 0x1p-1074);
    assert_refused(gguf_real(&file, "ka", &real), QL_FORMAT, "is u8, expected a real number");
    assert_ok(gguf_string(&file, "ki", p->arena, &words));
    assert_string_equal(words, "words");
    const gguf_key *array = gguf_key_of(&file, "li");
    assert_int_equal(array->kind, GGUF_ARRAY), assert_int_equal(array->element, GGUF_STRING);
    assert_int_equal(array->count, 2);
    gguf_close(&file);
}

/* Key by key and tensor by tensor; the data begin at a multiple of 32 of the file, not of what follows the header. */
static void trap37_padding_counts_from_the_start_of_the_file(void **state) {
    make_place *p = *state;
    static bytes b;
    gguf_meta meta = {0};
    gguf_tensor tensors[2] = {{.name = "a", .type = gguf_block(QL_Q4_0), .rank = 2, .ne = {32, 1, 1, 1}},
                              {.name = "b", .type = gguf_dtype(QL_F32), .rank = 2, .ne = {1, 1, 1, 1}}};
    gguf_writer *writer;
    uint8_t values[18];
    size_t size;
    char *written;
    uint64_t forecast;
    good_two_tensors(&b);
    for (int i = 0; i < 18; i++) values[i] = (uint8_t)(i + 1);
    assert_ok(gguf_put_u32(&meta, "some.key", 7));
    assert_ok(gguf_file_size(&meta, tensors, 2, &forecast));
    assert_ok(gguf_writer_open(p->path, &meta, tensors, 2, &writer));
    assert_ok(gguf_writer_append(writer, values, 10));
    assert_ok(gguf_writer_append(writer, values + 10, 8));
    assert_refused(gguf_writer_append(writer, values, 5), QL_INVALID, "5 bytes too many for tensor \"b\"");
    assert_ok(gguf_writer_append(writer, values, 4));
    assert_ok(gguf_writer_commit(writer, NULL));
    gguf_meta_free(&meta);
    assert_ok(ql_file_load(p->path, ROOM, p->arena, &written, &size));
    assert_int_equal(size, b.size), assert_int_equal(forecast, size);
    assert_memory_equal(written, b.data, size);
    assert_memory_equal(written,
                        "GGUF\3\0\0\0\2\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\10\0\0\0\0\0\0\0some.key\4\0\0\0\7\0\0\0", 48);
}

/* 2 tensors and 7 keys, the first of them general.alignment. */
static void gguf_known_header(void **state) {
    make_place *p = *state;
    static const char known[] = "GGUF\3\0\0\0\2\0\0\0\0\0\0\0\7\0\0\0\0\0\0\0"
                                "\21\0\0\0\0\0\0\0general.alignment\4\0\0\0\40\0\0\0";
    gguf_meta meta = {0};
    gguf_tensor tensors[2] = {{.name = "a", .type = gguf_dtype(QL_F32), .rank = 1, .ne = {8, 1, 1, 1}},
                              {.name = "b", .type = gguf_dtype(QL_F32), .rank = 1, .ne = {8, 1, 1, 1}}};
    float values[16] = {0};
    gguf_writer *writer;
    size_t size;
    char *written;
    assert_ok(gguf_put_u32(&meta, "general.alignment", 32));
    for (int i = 0; i < 6; i++) assert_ok(gguf_put_bool(&meta, (const char[]){(char)('a' + i), 0}, true));
    assert_ok(gguf_writer_open(p->path, &meta, tensors, 2, &writer));
    for (int i = 0; i < 2; i++) assert_ok(gguf_writer_append(writer, values, 32));
    assert_ok(gguf_writer_commit(writer, NULL));
    gguf_meta_free(&meta);
    assert_ok(ql_file_load(p->path, ROOM, p->arena, &written, &size));
    assert_memory_equal(written, known, sizeof known - 1);
}

static void gguf_writer_wants_every_tensor(void **state) {
    make_place *p = *state;
    gguf_meta meta = {0};
    gguf_tensor one_tensor = {.name = "a", .type = gguf_block(QL_Q4_K), .rank = 2, .ne = {256, 1, 1, 1}};
    gguf_writer *writer;
    (void)remove(p->path);
    assert_ok(gguf_writer_open(p->path, &meta, &one_tensor, 1, &writer));
    assert_refused(gguf_writer_commit(writer, NULL), QL_INVALID, "0 of 1 tensors");
    assert_false(ql_path_exists(p->path));
    one_tensor.ne[0] = 255;
    assert_refused(gguf_writer_open(p->path, &meta, &one_tensor, 1, &writer), QL_INVALID, "rows of 255");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gguf_verdicts),     cmocka_unit_test(gguf_cut_anywhere),
        cmocka_unit_test(gguf_values),       cmocka_unit_test(trap37_padding_counts_from_the_start_of_the_file),
        cmocka_unit_test(gguf_known_header), cmocka_unit_test(gguf_writer_wants_every_tensor),
    };
    return cmocka_run_group_tests(tests, make_place_open, make_place_close);
}
