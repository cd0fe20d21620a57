/* Packed streams: every bit of every code at its place, for all widths and all lengths up to a few words. */
#include "tests/test.h"

#include "host/index.h"
#include "host/mat.h"
#include "host/rng.h"

enum { MAX_K = 140 }; /* at 3 bits: every phase of a code within a word, four times */
static const int widths[] = {2, 3, 4, 5, 6, 7, 8};

static void make_codes(uint8_t *codes, int k, int bits, uint64_t seed) {
    for (int i = 0; i < k; i++) codes[i] = (uint8_t)(ql_random(seed, (uint64_t)i) & ((1u << bits) - 1));
}

/* The definition, one bit at a time: bit b of code i is bit i * bits + b of the stream. */
static void naive_stream(const uint8_t *codes, int k, int bits, uint32_t *words) {
    memset(words, 0, (size_t)ql_packed_words(k, bits) * sizeof *words);
    for (int i = 0; i < k; i++)
        for (int b = 0; b < bits; b++) {
            int at = i * bits + b;
            words[at / 32] |= (uint32_t)(codes[i] >> b & 1) << at % 32;
        }
}

static void words_and_codes_agree_with_the_definition(void **state) {
    (void)state;
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
        for (int bits = widths[w], k = 1; k <= MAX_K; k++) {
            uint8_t codes[MAX_K];
            uint32_t expected[MAX_K / 4 + 1];
            int32_t words[MAX_K / 4 + 1];
            make_codes(codes, k, bits, (uint64_t)(bits * 1000 + k));
            naive_stream(codes, k, bits, expected);
            for (int64_t word = 0; word < ql_packed_words(k, bits); word++) {
                words[word] = ql_stream_word(codes, k, bits, word);
                if ((uint32_t)words[word] != expected[word]) fail_msg("bits %d, k %d, word %d", bits, k, (int)word);
            }
            for (int i = 0; i < k; i++)
                if (ql_stream_code(words, bits, i) != codes[i]) fail_msg("bits %d, k %d, code %d", bits, k, i);
        }
}

/* A row ends where its last code ends: nothing may be read behind it.  The sanitizer watches the exactly sized block. */
static void the_last_code_is_read_inside_the_row(void **state) {
    (void)state;
    for (size_t w = 0; w < sizeof widths / sizeof *widths; w++)
        for (int bits = widths[w], k = 1; k <= MAX_K; k++) {
            size_t count = (size_t)ql_packed_words(k, bits);
            int32_t *words = malloc(count * sizeof *words);
            assert_non_null(words);
            for (size_t i = 0; i < count; i++) words[i] = -1;
            assert_int_equal(ql_stream_code(words, bits, k - 1), (1 << bits) - 1);
            free(words);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(words_and_codes_agree_with_the_definition),
        cmocka_unit_test(the_last_code_is_read_inside_the_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
