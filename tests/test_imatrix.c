/* Importance matrices: bytes of the legacy form made by hand, tensors of the GGUF form. */
#include "tests/make.h"
#include "tests/test.h"

#include "formats/gguf.h"
#include "formats/imatrix.h"

enum { ROOM = 1024 };

typedef struct bytes {
    uint8_t data[ROOM];
    size_t size;
} bytes;

static void int32(bytes *b, int32_t value) { memcpy(b->data + b->size, &value, 4), b->size += 4; }
static void real(bytes *b, float value) { memcpy(b->data + b->size, &value, 4), b->size += 4; }
static void text(bytes *b, const char *value) {
    int32(b, (int32_t)strlen(value));
    memcpy(b->data + b->size, value, strlen(value)), b->size += strlen(value);
}

/* Two entries, not in the order of their names; the second was never called. */
static void legacy(bytes *b) {
    b->size = 0;
    int32(b, 2);
    text(b, "blk.1.ffn_up.weight"), int32(b, 4), int32(b, 3), real(b, 4), real(b, 0), real(b, 10);
    text(b, "blk.0.attn_q.weight"), int32(b, 0), int32(b, 1), real(b, 7);
    int32(b, 12), text(b, "wiki.txt");
}

static ql_status read_bytes(make_place *p, const bytes *b, imatrix *out) {
    make_file(p->dir, MAKE_PLACE_FILE, b->data, b->size);
    return imatrix_read(p->path, p->arena, out);
}

static void check_values(const imatrix *m) {
    assert_int_equal(m->count, 2);
    const imatrix_entry *up = imatrix_find(m, "blk.1.ffn_up.weight");
    assert_int_equal(up->k, 3), assert_int_equal(up->count, 4);
    assert_true(up->mean[0] == 1 && up->mean[1] == 0 && up->mean[2] == 2.5f);
    assert_null(imatrix_find(m, "blk.1.ffn_down.weight"));
    assert_string_equal(m->dataset, "wiki.txt"), assert_int_equal(m->chunks, 12);
}

static void trap42_legacy_values_are_divided_by_calls(void **state) {
    bytes b;
    imatrix m;
    legacy(&b);
    assert_ok(read_bytes(*state, &b, &m));
    check_values(&m);
    assert_true(imatrix_find(&m, "blk.0.attn_q.weight")->mean[0] == 7);
}

/* An old file ends with its last entry. */
static void imatrix_legacy_without_a_note(void **state) {
    bytes b;
    imatrix m;
    legacy(&b), b.size -= 4 + 4 + 8;
    assert_ok(read_bytes(*state, &b, &m));
    assert_int_equal(m.count, 2), assert_string_equal(m.dataset, "");
}

static void imatrix_cut_anywhere(void **state) {
    bytes b, part;
    imatrix m;
    legacy(&b);
    for (size_t size = 0; size < b.size; size++) {
        if (size == b.size - 16) continue; /* the file without a note */
        part = b, part.size = size;
        assert_int_equal(read_bytes(*state, &part, &m), QL_FORMAT);
    }
}

static void imatrix_gguf_form_comes_back(void **state) {
    make_place *p = *state;
    bytes b;
    imatrix m, again;
    gguf_file file;
    float values[3], count;
    legacy(&b);
    assert_ok(read_bytes(p, &b, &m));
    m.chunk_size = 512;
    assert_ok(imatrix_write(p->path, &m));
    assert_ok(imatrix_read(p->path, p->arena, &again));
    check_values(&again);
    assert_int_equal(again.chunk_size, 512);
    assert_true(imatrix_find(&again, "blk.0.attn_q.weight")->mean[0] == 1); /* nothing was counted */

    assert_ok(gguf_open(p->path, p->arena, &file));
    const gguf_tensor *sums = gguf_find(&file, "blk.1.ffn_up.weight.in_sum2");
    assert_int_equal(sums->ne[0], 3), assert_int_equal(sums->ne[1], 1);
    assert_ok(gguf_read(&file, sums, values));
    assert_true(values[0] == 4 && values[1] == 0 && values[2] == 10);
    assert_ok(gguf_read(&file, gguf_find(&file, "blk.1.ffn_up.weight.counts"), &count));
    assert_true(count == 4);
    gguf_close(&file);
}

static void trap42_weights_have_a_floor(void **state) {
    (void)state;
    float mean[4] = {0, 4, 0, 8}, zeros[2] = {0, 0}, weights[4];
    imatrix_weights(&(imatrix_entry){.k = 4, .mean = mean}, weights);
    assert_true(weights[1] == 4 && weights[3] == 8 && weights[0] == weights[2]);
    assert_true(weights[0] > 2.9e-6f && weights[0] < 3.1e-6f); /* a millionth of 3 */
    imatrix_weights(&(imatrix_entry){.k = 2, .mean = zeros}, weights);
    assert_true(weights[0] == 1 && weights[1] == 1);
}

static void refuse(make_place *p, bytes *b, const char *words) {
    imatrix m;
    assert_refused(read_bytes(p, b, &m), QL_FORMAT, words);
}

static void imatrix_bad_legacy(void **state) {
    bytes b = {.size = 0};
    int32(&b, -1);
    refuse(*state, &b, "-1 entries at byte 0");
    b.size = 0, int32(&b, 100000);
    refuse(*state, &b, "100000 entries");
    b.size = 0, int32(&b, 1), int32(&b, INT32_MAX), b.size += 64;
    refuse(*state, &b, "entry 0: 2147483647 bytes of a name");
    b.size = 0, int32(&b, 1), text(&b, "a"), int32(&b, 1), int32(&b, INT32_MAX), real(&b, 0);
    refuse(*state, &b, "entry 0: 2147483647 values");
    b.size = 0, int32(&b, 1), text(&b, "name"), int32(&b, 1), int32(&b, 1), real(&b, -1);
    refuse(*state, &b, "\"name\": value 0 is -1");
    b.size = 0, int32(&b, 1), text(&b, "name"), int32(&b, 1), int32(&b, 1), real(&b, __builtin_nanf(""));
    refuse(*state, &b, "expected a mean of squares");
    b.size = 0, int32(&b, 2);
    for (int i = 0; i < 2; i++) text(&b, "same"), int32(&b, 1), int32(&b, 1), real(&b, 1);
    refuse(*state, &b, "\"same\" twice");
}

/* One tensor, one key less or of another type. */
static void imatrix_bad_gguf(void **state) {
    make_place *p = *state;
    static const char *const words[] = {"\"general.type\" is missing",
                                        "not an importance matrix",
                                        "\"imatrix.chunk_count\" is missing",
                                        "\"a.counts\" is missing",
                                        "is -1",
                                        "no entries"};
    const char *dataset = "d";
    for (int bad = 0; bad < 6; bad++) {
        gguf_meta meta = {0};
        gguf_writer *writer;
        imatrix m;
        float sums[2] = {1, 2}, count = bad == 4 ? -1 : 1;
        gguf_tensor tensors[2] = {
            {.name = bad == 5 ? "a.other" : "a.in_sum2", .type = gguf_dtype(QL_F32), .rank = 2, .ne = {2, 1, 1, 1}},
            {.name = bad == 3 ? "b.counts" : "a.counts", .type = gguf_dtype(QL_F32), .rank = 2, .ne = {1, 1, 1, 1}}};
        if (bad != 0) assert_ok(gguf_put_string(&meta, "general.type", bad == 1 ? "model" : "imatrix"));
        if (bad != 2) assert_ok(gguf_put_u32(&meta, "imatrix.chunk_count", 1));
        assert_ok(gguf_put_u32(&meta, "imatrix.chunk_size", 1));
        assert_ok(gguf_put_array(&meta, "imatrix.datasets", GGUF_STRING, &dataset, 1));
        assert_ok(gguf_writer_open(p->path, &meta, tensors, 2, &writer));
        assert_ok(gguf_writer_append(writer, sums, sizeof sums));
        assert_ok(gguf_writer_append(writer, &count, sizeof count));
        assert_ok(gguf_writer_commit(writer, NULL));
        gguf_meta_free(&meta);
        assert_refused(imatrix_read(p->path, p->arena, &m), QL_FORMAT, words[bad]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(trap42_legacy_values_are_divided_by_calls),
        cmocka_unit_test(imatrix_legacy_without_a_note),
        cmocka_unit_test(imatrix_cut_anywhere),
        cmocka_unit_test(imatrix_gguf_form_comes_back),
        cmocka_unit_test(trap42_weights_have_a_floor),
        cmocka_unit_test(imatrix_bad_legacy),
        cmocka_unit_test(imatrix_bad_gguf),
    };
    return cmocka_run_group_tests(tests, make_place_open, make_place_close);
}
