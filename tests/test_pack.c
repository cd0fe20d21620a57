/* Packed streams: known words, every width and length, padding bits, codes that are too large. */
#include "tests/grids.h"

#include "host/rng.h"
#include "tests/ref.h"

static void check_words(backend *b, int bits, int k, const uint8_t *codes, const uint32_t *expected) {
    ql_mat host = poisoned(b, QL_U8, 1, k), words = poisoned(b, QL_I32, 1, ql_packed_words(k, bits));
    memcpy(host.data, codes, (size_t)k);
    ql_mat dwords = upload(b, words);
    assert_ok(ql_pack(b->ctx, upload(b, host), bits, dwords));
    download(b, dwords, words);
    for (int64_t i = 0; i < words.cols; i++) assert_int_equal(((uint32_t *)words.data)[i], expected[i]);
}

static void pack_known_words(void **state) {
    const uint8_t nibbles[] = {0, 1, 2, 3, 4, 5, 6, 7}, bytes[] = {0, 1, 2, 255};
    uint8_t pairs[16], threes[32];
    for (int i = 0; i < 16; i++) pairs[i] = (uint8_t)(i % 4);
    for (int i = 0; i < 32; i++) threes[i] = (uint8_t)(i % 8);
    check_words(*state, 4, 8, nibbles, (uint32_t[]){0x76543210});
    check_words(*state, 2, 16, pairs, (uint32_t[]){0xE4E4E4E4});
    check_words(*state, 3, 32, threes, (uint32_t[]){0x88FAC688, 0xC688FAC6, 0xFAC688FA});
    check_words(*state, 8, 4, bytes, (uint32_t[]){0xFF020100});
}

/* Against the bit-by-bit definition, and back; the words start as poison, so padding bits must be written. */
static void check_round_trip(backend *b, int bits, int64_t n, int64_t k) {
    ql_mat codes = random_codes(b, bits, n, k, (uint64_t)(k * 10 + bits)), back = poisoned(b, QL_U8, n, k);
    ql_mat words = poisoned(b, QL_I32, n, ql_packed_words(k, bits)), truth = poisoned(b, QL_I32, n, words.cols);
    ql_mat dwords = upload(b, words), dback = upload(b, back);
    ref_pack(codes, bits, truth);
    assert_ok(ql_pack(b->other, upload(b, codes), bits, dwords));
    assert_ok(ql_unpack(b->other, dwords, bits, dback));
    download(b, dwords, words);
    download(b, dback, back);
    assert_same_bits(words, truth);
    assert_same_bits(back, codes);
}

static void pack_every_length(void **state) {
    for (int w = 0; w < GRID_WIDTHS; w++)
        for (int64_t k = 1; k <= 100; k++) check_round_trip(*state, grid_widths[w], 3, k);
}

static void pack_many_rows(void **state) { check_round_trip(*state, 3, 517, 4099); }

static void pack_nothing(void **state) {
    backend *b = *state;
    for (int64_t n = 0; n < 2; n++) {
        ql_mat codes = upload(b, poisoned(b, QL_U8, n, 1 - n)), words = upload(b, poisoned(b, QL_I32, n, 1 - n));
        assert_ok(ql_pack(b->ctx, codes, 4, words));
        assert_ok(ql_unpack(b->ctx, words, 4, codes));
    }
}

/* The first bad code is named and no word is touched. */
static void pack_refuses_large_codes(void **state) {
    backend *b = *state;
    for (int w = 0; grid_widths[w] < 8; w++) {
        int bits = grid_widths[w];
        ql_mat codes = random_codes(b, bits, 5, 70, 1), words = poisoned(b, QL_I32, 5, ql_packed_words(70, bits));
        ref_put(codes, 3, 41, 1 << bits);
        ref_put(codes, 4, 0, 255);
        ql_mat dwords = upload(b, words);
        assert_refused(ql_pack(b->other, upload(b, codes), bits, dwords), QL_INVALID, "row 3, column 41");
        download(b, dwords, words);
        for (int64_t i = 0; i < 5 * words.ld; i++) assert_int_equal(((int32_t *)words.data)[i], -1);
    }
}

static void pack_refuses_shapes(void **state) {
    backend *b = *state;
    ql_mat codes = upload(b, poisoned(b, QL_U8, 2, 33)), words = upload(b, poisoned(b, QL_I32, 2, 4));
    assert_refused(ql_pack(b->ctx, codes, 9, words), QL_INVALID, "9 bits, expected 2 to 8");
    assert_refused(ql_pack(b->ctx, codes, 4, words), QL_INVALID, "words: has 4 columns, expected 5");
    assert_refused(ql_unpack(b->ctx, words, 2, codes), QL_INVALID, "words: has 4 columns, expected 3");
    words.dtype = QL_F32;
    assert_refused(ql_unpack(b->ctx, words, 3, codes), QL_INVALID, "is F32, expected I32");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pack_known_words),         cmocka_unit_test(pack_every_length),
        cmocka_unit_test(pack_many_rows),           cmocka_unit_test(pack_nothing),
        cmocka_unit_test(pack_refuses_large_codes), cmocka_unit_test(pack_refuses_shapes),
    };
    return run_on_backends(tests);
}
