/* Block formats of GGUF: ggml's own bytes, the layout read naively, shapes that do not fill a warp, importance of nothing. */
#include "tests/backend.h"

#include <ctype.h>
#include <math.h>

#include "host/num.h"
#include "tests/ref.h"

enum { ROWS = 32, COLS = 1024 };

static void read_vector(const char *name, void *to, size_t bytes) {
    char path[128];
    snprintf(path, sizeof path, "tests/data/ggml/%s", name);
    FILE *file = fopen(path, "rb");
    if (!file) fail_msg("%s is missing", path);
    size_t got = fread(to, 1, bytes, file);
    int more = fgetc(file);
    fclose(file);
    if (got != bytes || more != EOF) fail_msg("%s does not have %zu bytes", path, bytes);
}

static ql_mat vector_matrix(backend *b, const char *name, ql_dtype dtype, int64_t rows, int64_t cols) {
    ql_mat mat = poisoned_dense(b, dtype, rows, cols);
    read_vector(name, mat.data, ql_mat_bytes(mat));
    return mat;
}

static int64_t row_bytes(ql_block_type type, int64_t k) { return k / ql_block_weights(type) * ql_block_bytes(type); }

/* One call with one thread, one with three: the same bytes. */
static ql_mat encode(backend *b, ql_mat w, ql_mat importance, ql_block_type type) {
    ql_mat blocks = poisoned(b, QL_U8, w.rows, row_bytes(type, w.cols));
    ql_mat first = upload(b, blocks), again = upload(b, blocks), dw = upload(b, w);
    ql_mat dq = ql_is_present(importance) ? upload(b, importance) : ql_no_mat();
    assert_ok(ql_encode_blocks(b->ctx, dw, dq, type, first));
    assert_ok(ql_encode_blocks(b->other, dw, dq, type, again));
    assert_same_bits_on_device(b, first, again);
    download(b, first, blocks);
    return blocks;
}

static ql_mat decode(backend *b, ql_mat blocks, ql_block_type type, int64_t k) {
    ql_mat w = poisoned(b, QL_F32, blocks.rows, k), dw = upload(b, w);
    assert_ok(ql_decode_blocks(b->other, upload(b, blocks), type, dw));
    download(b, dw, w);
    return w;
}

static void file_name(ql_block_type type, int important, char *name, size_t size) {
    snprintf(name, size, "%s%s.bin", ql_block_name(type), important ? ".imatrix" : "");
    for (char *c = name; *c; c++)
        if (*c != 'K') *c = (char)tolower(*c);
}

static void kquant_bytes_of_ggml(void **state) {
    backend *b = *state;
    ql_mat x = vector_matrix(b, "x.f32", QL_F32, ROWS, COLS), q = vector_matrix(b, "imatrix.f32", QL_F32, 1, COLS);
    for (int type = 0; type < QL_BLOCK_TYPE_COUNT; type++)
        for (int important = 0; important < 2; important++) {
            char name[32];
            file_name(type, important, name, sizeof name);
            ql_mat truth = vector_matrix(b, name, QL_U8, ROWS, row_bytes(type, COLS));
            ql_mat blocks = encode(b, x, important ? q : ql_no_mat(), type);
            for (int64_t r = 0; r < ROWS; r++)
                for (int64_t o = 0; o < truth.cols; o++) {
                    int byte = (int)ref_at(blocks, r, o), expected = (int)ref_at(truth, r, o);
                    if (byte != expected)
                        fail_msg("%s: row %d, block %d, byte %d is %02x, ggml has %02x", name, (int)r,
                                 (int)(o / ql_block_bytes(type)), (int)(o % ql_block_bytes(type)), byte, expected);
                }
        }
}

/* ---- the layouts, as a reader walks through them ------------------------------------------------------------------------------ */

static float half_at(const uint8_t *b) { return ql_f16_to_f32((uint16_t)(b[0] | b[1] << 8)); }

static void read_simple(ql_block_type type, const uint8_t *b, float *x) {
    static const float values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    float d = half_at(b), m = half_at(b + 2);
    uint32_t fifth = 0;
    const uint8_t *low = b + 2;
    if (type == QL_Q4_1 || type == QL_Q5_1) low += 2;
    if (type == QL_Q5_0 || type == QL_Q5_1) {
        for (int i = 0; i < 4; i++) fifth |= (uint32_t)low[i] << (8 * i);
        low += 4;
    }
    for (int i = 0; i < 32; i++) {
        int n = i < 16 ? low[i] & 15 : low[i - 16] >> 4, n5 = n + 16 * (int)(fifth >> i & 1);
        if (type == QL_Q4_0) x[i] = d * (float)(n - 8);
        if (type == QL_Q4_1) x[i] = d * (float)n + m;
        if (type == QL_Q5_0) x[i] = d * (float)(n5 - 16);
        if (type == QL_Q5_1) x[i] = d * (float)n5 + m;
        if (type == QL_IQ4_NL) x[i] = d * values[n];
        if (type == QL_Q8_0) x[i] = d * (float)((int8_t *)b)[2 + i];
    }
}

/* Two bits per weight: four weights, 32 apart, in each of 32 bytes, twice. */
static void read_q2(const uint8_t *b, float *x) {
    for (int half = 0; half < 2; half++)
        for (int shift = 0; shift < 8; shift += 2)
            for (int i = 0; i < 32; i++) {
                int j = 128 * half + 16 * shift + i, s = b[j / 16], q = b[16 + 32 * half + i] >> shift & 3;
                x[j] = half_at(b + 80) * (float)(s & 15) * (float)q - half_at(b + 82) * (float)(s >> 4);
            }
}

static void read_q3(const uint8_t *b, float *x) {
    int scale[16];
    for (int i = 0; i < 4; i++)
        for (int part = 0; part < 4; part++) { /* 96 + i, 100 + i hold low halves, 104 + i all four upper pairs */
            int low = b[96 + i + 4 * (part % 2)] >> 4 * (part / 2) & 15;
            scale[i + 4 * part] = (low | (b[104 + i] >> 2 * part & 3) << 4) - 32;
        }
    for (int half = 0; half < 2; half++)
        for (int pair = 0; pair < 4; pair++)
            for (int i = 0; i < 32; i++) {
                int j = 128 * half + 32 * pair + i, q = b[32 + 32 * half + i] >> 2 * pair & 3;
                if (!(b[i] & 1 << (4 * half + pair))) q -= 4;
                x[j] = half_at(b + 108) * (float)scale[j / 16] * (float)q;
            }
}

static void read_q4_q5(ql_block_type type, const uint8_t *b, float *x) {
    int s[8], m[8];
    for (int i = 0; i < 4; i++) {
        s[i] = b[4 + i] & 63, m[i] = b[8 + i] & 63;
        s[4 + i] = (b[12 + i] & 15) + (b[4 + i] >> 6) * 16, m[4 + i] = (b[12 + i] >> 4) + (b[8 + i] >> 6) * 16;
    }
    const uint8_t *low = b + (type == QL_Q5_K ? 48 : 16);
    for (int sub = 0; sub < 8; sub++)
        for (int i = 0; i < 32; i++) {
            int q = sub % 2 ? low[32 * (sub / 2) + i] >> 4 : low[32 * (sub / 2) + i] & 15;
            if (type == QL_Q5_K && (b[16 + i] >> sub & 1)) q += 16;
            x[32 * sub + i] = half_at(b) * (float)s[sub] * (float)q - half_at(b + 2) * (float)m[sub];
        }
}

static void read_q6(const uint8_t *b, float *x) {
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 32; i++) {
            const uint8_t *low = b + 64 * half + i, high = b[128 + 32 * half + i];
            int q[4] = {low[0] & 15, low[32] & 15, low[0] >> 4, low[32] >> 4};
            for (int part = 0; part < 4; part++) {
                int j = 128 * half + 32 * part + i, code = (q[part] | (high >> 2 * part & 3) << 4) - 32;
                x[j] = half_at(b + 208) * (float)((int8_t *)b)[192 + j / 16] * (float)code;
            }
        }
}

static void read_block(ql_block_type type, const uint8_t *b, float *x) {
    if (type == QL_Q2_K) read_q2(b, x);
    else if (type == QL_Q3_K) read_q3(b, x);
    else if (type == QL_Q4_K || type == QL_Q5_K) read_q4_q5(type, b, x);
    else if (type == QL_Q6_K) read_q6(b, x);
    else read_simple(type, b, x);
}

/* Random bytes, so that every bit of every field counts; binary16 fields are kept finite, as a reader demands. */
static void kquant_decodes_every_bit(void **state) {
    backend *b = *state;
    uint64_t seed = 1;
    for (int type = 0; type < QL_BLOCK_TYPE_COUNT; type++) {
        int64_t k = 3 * ql_block_weights(type), bytes = ql_block_bytes(type);
        ql_mat blocks = poisoned(b, QL_U8, 5, row_bytes(type, k));
        for (int64_t r = 0; r < 5; r++)
            for (int64_t o = 0; o < blocks.cols; o++) {
                seed = seed * 6364136223846793005u + 1442695040888963407u;
                ((uint8_t *)blocks.data)[r * blocks.ld + o] = (uint8_t)(seed >> 40) & (o % bytes % 2 ? 0xbf : 0xff);
            }
        ql_mat w = decode(b, blocks, type, k);
        for (int64_t r = 0; r < 5; r++)
            for (int64_t i = 0; i < 3; i++) {
                float truth[256];
                read_block(type, (uint8_t *)blocks.data + r * blocks.ld + i * bytes, truth);
                for (int64_t j = 0; j < ql_block_weights(type); j++)
                    if ((float)ref_at(w, r, i * ql_block_weights(type) + j) != truth[j])
                        fail_msg("%s: weight %d is %g, expected %g", ql_block_name(type), (int)j,
                                 ref_at(w, r, i * ql_block_weights(type) + j), truth[j]);
            }
    }
}

/* One block whose values are exact: it says which byte holds which weight. */
static void trap40_nibbles_of_q4_0(void **state) {
    backend *b = *state;
    ql_mat w = poisoned(b, QL_F32, 1, 32);
    for (int i = 0; i < 32; i++) ref_put(w, 0, i, 0);
    ref_put(w, 0, 3, -8), ref_put(w, 0, 0, -7), ref_put(w, 0, 16, -6); /* codes 0, 1 and 2 of scale 1 */
    ql_mat blocks = encode(b, w, ql_no_mat(), QL_Q4_0);
    const uint8_t *bytes = blocks.data;
    assert_int_equal(bytes[0], 0x00), assert_int_equal(bytes[1], 0x3c);
    assert_int_equal(bytes[2], 0x21), assert_int_equal(bytes[5], 0x80);
}

/* Scales s[i] = 9 i and minima m[i] = 63 - 9 i of eight times 32 weights: with codes of 1 a block says them all. */
static void trap38_scales_beyond_four_bits(void **state) {
    backend *b = *state;
    static const uint8_t scales[12] = {0x80, 0x89, 0xd2, 0xdb, 0x7f, 0x76, 0x2d, 0x24, 0xb4, 0x2d, 0x96, 0x0f};
    for (int type = QL_Q4_K; type <= QL_Q5_K; type++) {
        ql_mat block = poisoned(b, QL_U8, 1, ql_block_bytes(type));
        uint8_t *bytes = block.data;
        memset(bytes, 0, (size_t)block.cols);
        bytes[1] = 0x3c, bytes[3] = 0x2c; /* d = 1, dmin = 1/16 */
        memcpy(bytes + 4, scales, sizeof scales);
        memset(bytes + (type == QL_Q5_K ? 48 : 16), 0x11, 128);
        ql_mat w = decode(b, block, type, 256);
        for (int j = 0; j < 256; j++) assert_true(ref_at(w, 0, j) == 9 * (j / 32) - (63 - 9 * (j / 32)) / 16.0);
    }
    static const uint8_t signed_scales[12] = {0x00, 0x44, 0x88, 0xcc, 0x00, 0x44, 0x88, 0xcc, 0xe4, 0xe4, 0xe4, 0xe4};
    ql_mat block = poisoned(b, QL_U8, 1, ql_block_bytes(QL_Q3_K));
    uint8_t *bytes = block.data;
    memset(bytes, 0xff, 32), memset(bytes + 32, 0x55, 64); /* every code is 1 */
    memcpy(bytes + 96, signed_scales, sizeof signed_scales);
    bytes[108] = 0, bytes[109] = 0x3c;
    ql_mat w = decode(b, block, QL_Q3_K, 256);
    for (int j = 0; j < 256; j++) assert_true(ref_at(w, 0, j) == 4 * (j / 16) - 32);
}

/* The K types subtract their minimum, the older ones add it. */
static void trap39_signs_of_minima(void **state) {
    backend *b = *state;
    static const struct {
        ql_block_type type;
        int minimum; /* where it lies */
        double value;
    } known[] = {{QL_Q2_K, 82, -15}, {QL_Q4_K, 2, -63}, {QL_Q5_K, 2, -63}, {QL_Q4_1, 2, 1}, {QL_Q5_1, 2, 1}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        ql_mat block = poisoned(b, QL_U8, 1, ql_block_bytes(known[i].type));
        uint8_t *bytes = block.data;
        memset(bytes, 0, (size_t)block.cols);
        bytes[known[i].minimum + 1] = 0x3c;
        if (known[i].type == QL_Q2_K) memset(bytes, 0xf0, 16);
        if (known[i].type == QL_Q4_K || known[i].type == QL_Q5_K) memset(bytes + 8, 0x3f, 4);
        ql_mat w = decode(b, block, known[i].type, ql_block_weights(known[i].type));
        if (ref_at(w, 0, 5) != known[i].value) fail_msg("%s: %g", ql_block_name(known[i].type), ref_at(w, 0, 5));
    }
}

static double relative_error(ql_mat w, ql_mat back) {
    double error = 0, norm = 0;
    for (int64_t r = 0; r < w.rows; r++)
        for (int64_t c = 0; c < w.cols; c++) {
            double x = ref_at(w, r, c), difference = ref_at(back, r, c) - x;
            error += difference * difference, norm += x * x;
        }
    return sqrt(error / norm);
}

/* The errors of ggml on normal weights, which a layout that is wrong anywhere exceeds by far; rows that do not fill the last warp
 * and the last 256 weights. */
static void kquant_error_is_that_of_the_format(void **state) {
    backend *b = *state;
    const double known[QL_BLOCK_TYPE_COUNT] = {
        [QL_Q4_0] = .084, [QL_Q4_1] = .077, [QL_Q5_0] = .042, [QL_Q5_1] = .037,  [QL_Q8_0] = .0052, [QL_Q2_K] = .293,
        [QL_Q3_K] = .149, [QL_Q4_K] = .070, [QL_Q5_K] = .036, [QL_Q6_K] = .0175, [QL_IQ4_NL] = .075};
    for (int type = 0; type < QL_BLOCK_TYPE_COUNT; type++) {
        int64_t k = ql_block_weights(type) == 32 ? 13 * 32 : 3 * 256;
        ql_mat w = normal(b, 17, k, 7), blocks = encode(b, w, ql_no_mat(), type);
        double error = relative_error(w, decode(b, blocks, type, k));
        /* other weights than those it was measured with; a wrong bit anywhere costs more than 6 % */
        if (!(fabs(error / known[type] - 1) < 0.06))
            fail_msg("%s: relative error %g, known is %g", ql_block_name(type), error, known[type]);
    }
}

/* The same rows one by one: a block depends on nothing but its row. */
static void kquant_rows_are_independent(void **state) {
    backend *b = *state;
    for (int type = 0; type < QL_BLOCK_TYPE_COUNT; type++) {
        ql_mat w = outliers(b, 3, 512, 3), q = normal(b, 1, 512, 4);
        for (int64_t c = 0; c < 512; c++) ref_put(q, 0, c, fabs(ref_at(q, 0, c)));
        ql_mat all = encode(b, w, q, type);
        for (int64_t r = 0; r < 3; r++) assert_same_bits(encode(b, ql_rows(w, r, 1), q, type), ql_rows(all, r, 1));
    }
}

/* Dead inputs alone: a search has nothing to weigh with, and the block becomes zeros. */
static void kquant_importance_zero_makes_zeros(void **state) {
    backend *b = *state;
    ql_mat w = normal(b, 2, 256, 5), q = poisoned(b, QL_F32, 1, 256);
    for (int64_t c = 0; c < 256; c++) ref_put(q, 0, c, 0);
    for (int type = 0; type < QL_BLOCK_TYPE_COUNT; type++) {
        if (type == QL_Q4_1 || type == QL_Q5_1 || type == QL_Q8_0) continue; /* keep their range */
        ql_mat back = decode(b, encode(b, w, q, type), type, 256);
        for (int64_t r = 0; r < 2; r++)
            for (int64_t c = 0; c < 256; c++) assert_true(ref_at(back, r, c) == 0);
    }
}

/* Zeros, one value alone, values around the least extent, and what is not finite: no crash, and bytes of the right number. */
static void kquant_odd_values(void **state) {
    backend *b = *state;
    const double odd[] = {0, 1, -1, 1e-15, 9e-16, 1e-38, 65504, -3e38, NAN, INFINITY, -INFINITY};
    for (int type = 0; type < QL_BLOCK_TYPE_COUNT; type++)
        for (size_t i = 0; i < sizeof odd / sizeof *odd; i++)
            for (int alone = 0; alone < 2; alone++) {
                ql_mat w = poisoned(b, QL_F32, 1, 256), q = poisoned(b, QL_F32, 1, 256);
                for (int64_t c = 0; c < 256; c++) ref_put(w, 0, c, !alone || c == 77 ? odd[i] : 0), ref_put(q, 0, c, 1);
                ql_mat plain = encode(b, w, ql_no_mat(), type);
                encode(b, w, q, type);
                if (odd[i] == 0)
                    for (int64_t o = 0; o < plain.cols; o++)
                        if (type != QL_Q4_0 && type != QL_Q5_0 && type != QL_IQ4_NL)
                            assert_int_equal(((uint8_t *)plain.data)[o], 0);
            }
}

static void kquant_refuses_what_does_not_fit(void **state) {
    backend *b = *state;
    ql_mat w = upload(b, normal(b, 2, 256, 1)), none = ql_no_mat();
    ql_mat blocks = upload(b, poisoned(b, QL_U8, 2, 144));
    assert_ok(ql_encode_blocks(b->ctx, w, none, QL_Q4_K, blocks));
    assert_refused(ql_encode_blocks(b->ctx, w, none, QL_BLOCK_TYPE_COUNT, blocks), QL_INVALID, "not a block type");
    assert_refused(ql_encode_blocks(b->ctx, w, none, QL_Q6_K, blocks), QL_INVALID, "expected 210");
    assert_refused(ql_encode_blocks(b->ctx, ql_cols(w, 0, 255), none, QL_Q4_K, blocks), QL_INVALID,
                   "a block of Q4_K has 256");
    assert_refused(ql_encode_blocks(b->ctx, w, ql_cols(w, 0, 256), QL_Q4_K, blocks), QL_INVALID,
                   "importance: has 2 rows");
    assert_refused(ql_decode_blocks(b->ctx, ql_rows(blocks, 0, 1), QL_Q4_K, w), QL_INVALID, "blocks: has 1 rows");
    ql_mat empty = ql_mat_of(NULL, QL_F32, 0, 256), nothing = ql_mat_of(NULL, QL_U8, 0, 144);
    assert_ok(ql_encode_blocks(b->ctx, empty, none, QL_Q4_K, nothing));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kquant_bytes_of_ggml),
        cmocka_unit_test(kquant_decodes_every_bit),
        cmocka_unit_test(trap40_nibbles_of_q4_0),
        cmocka_unit_test(kquant_error_is_that_of_the_format),
        cmocka_unit_test(kquant_rows_are_independent),
        cmocka_unit_test(kquant_importance_zero_makes_zeros),
        cmocka_unit_test(trap38_scales_beyond_four_bits),
        cmocka_unit_test(trap39_signs_of_minima),
        cmocka_unit_test(kquant_odd_values),
        cmocka_unit_test(kquant_refuses_what_does_not_fit),
    };
    return run_on_backends(tests);
}
