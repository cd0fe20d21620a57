/* Statistics: H, moments, histogram of magnitudes. */
#include "tests/backend.h"

#include <math.h>

#include "host/fragment.h"
#include "host/num.h"
#include "host/syrk.h"
#include "tests/ref.h"

static ql_mat filled(backend *b, ql_dtype dtype, int64_t rows, int64_t cols, double value) {
    ql_mat mat = poisoned(b, dtype, rows, cols);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < cols; c++) ref_put(mat, r, c, value);
    return mat;
}

/* Two additions into one H whose lower triangle holds a value that must survive. */
static void check_hessian(backend *b, ql_mat x, ql_dtype dtype, double bound) {
    int64_t k = x.cols, half = x.rows / 2;
    ql_mat h = filled(b, dtype, k, k, -3), truth = poisoned(b, QL_F64, k, k);
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < k; j++) {
            if (i <= j) ref_put(h, i, j, 0);
            ref_put(truth, i, j, i <= j ? 0 : -3);
        }
    ref_hessian(x, truth);
    ql_mat dx = upload(b, x), dh = upload(b, h), again = upload(b, h);
    ql_ctx *contexts[] = {b->ctx, b->other};
    for (int i = 0; i < 2; i++) {
        assert_ok(ql_hessian(contexts[i], ql_rows(dx, 0, half), i ? again : dh));
        assert_ok(ql_hessian(contexts[i], ql_rows(dx, half, x.rows - half), i ? again : dh));
    }
    download(b, dh, h);
    for (int64_t i = 0; i < k; i++)
        for (int64_t j = 0; j < i; j++) assert_true(ref_at(h, i, j) == -3);
    assert_close(h, truth, bound);
    assert_same_bits_on_device(b, dh, again);
}

static void hessian_odd_sizes(void **state) {
    check_hessian(*state, normal(*state, 1, 1, 1), QL_F32, 1e-5); /* kernels.md: 1e-5 of the norm for FP32 sums */
    check_hessian(*state, normal(*state, 65, 33, 2), QL_F32, 1e-5);
    check_hessian(*state, outliers(*state, 118, 257, 3), QL_F32, 1e-5);
}

static void hessian_crosses_tiles(void **state) {
    check_hessian(*state, normal(*state, 21, 523, 4), QL_F32, 1e-5);
    check_hessian(*state, normal(*state, 21, 523, 4), QL_F64, 1e-14);
}

/* Products in double: sqrt(m) 2^-53 and no FP32 rounding anywhere; more rows than are converted at a time. */
static void hessian_in_double(void **state) {
    check_hessian(*state, normal(*state, 1, 1, 1), QL_F64, 1e-15);
    check_hessian(*state, outliers(*state, 1100, 37, 5), QL_F64, 1e-14);
}

/* ---- BF16: tensor cores on the GPU ------------------------------------------------------------------------------------------ */

/* The same values in BF16, so that sums are all that can be wrong.  `padding` columns between rows. */
static ql_mat in_bf16(backend *b, ql_mat x, int64_t padding) {
    ql_mat half = poisoned_dense(b, QL_BF16, x.rows, x.cols + padding);
    half.cols = x.cols;
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) ref_put(half, r, c, ref_at(x, r, c));
    return half;
}

/* kernels.md: 1e-5 of the norm; tensor cores cut off up to 2^-23 of a sum 32 times before it is rounded, 2e-6 on the diagonal. */
static void hessian_of_bf16_with_tails(void **state) {
    backend *b = *state;
    const int64_t tokens[] = {1, 7, 16, 31, 32, 33, 97, 118, 129};
    for (int i = 0; i < 9; i++) check_hessian(b, in_bf16(b, normal(b, tokens[i], 133, 6), 3), QL_F32, 1e-5);
    const int64_t inputs[] = {1, 8, 15, 127, 128, 129, 257};
    for (int i = 0; i < 7; i++) check_hessian(b, in_bf16(b, outliers(b, 70, inputs[i], 7), 3), QL_F32, 1e-5);
    check_hessian(b, in_bf16(b, normal(b, 65, 264, 8), 0), QL_F32, 1e-5); /* rows that begin at multiples of 16 bytes */
    check_hessian(b, in_bf16(b, normal(b, 600, 37, 9), 3), QL_F64, 1e-14);
    check_hessian(b, in_bf16(b, outliers(b, 150, 600, 12), 4), QL_F32, 1e-5); /* several tiles of any kernel */
}

/* Equal signs make sums grow with every token, where cutting off hurts most; several runs of 512. */
static void hessian_of_bf16_with_many_tokens(void **state) {
    backend *b = *state;
    ql_mat x = normal(b, 4200, 24, 10);
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) ref_put(x, r, c, fabs(ref_at(x, r, c)));
    check_hessian(b, in_bf16(b, x, 0), QL_F32, 1e-5);
}

/* The same bits five times, and nearly the same sums whatever the tokens per call. */
static void hessian_of_bf16_repeats_and_chunks(void **state) {
    backend *b = *state;
    ql_mat x = upload(b, in_bf16(b, outliers(b, 1300, 150, 11), 2)), h = filled(b, QL_F32, 150, 150, 0),
           first = upload(b, h);
    assert_ok(ql_hessian(b->ctx, x, first));
    for (int i = 0; i < 4; i++) {
        ql_mat again = upload(b, h);
        assert_ok(ql_hessian(b->ctx, x, again));
        assert_same_bits_on_device(b, first, again);
    }
    ql_mat whole = poisoned(b, QL_F32, 150, 150), parts = filled(b, QL_F32, 150, 150, 0), sum = upload(b, parts);
    for (int64_t row = 0; row < x.rows; row += 97)
        assert_ok(ql_hessian(b->ctx, ql_rows(x, row, x.rows - row < 97 ? x.rows - row : 97), sum));
    download(b, first, whole);
    download(b, sum, parts);
    assert_close(parts, whole, 2e-6); /* kernels.md */
}

/* ---- stripes ---------------------------------------------------------------------------------------------------------------------- */

/* Some first rows against the truth; what lies below the diagonal survives. */
static void check_first_rows(backend *b, ql_mat x, ql_dtype dtype, int64_t rows, double bound) {
    ql_mat h = filled(b, dtype, rows, x.cols, 2), truth = poisoned(b, QL_F64, rows, x.cols), dh = upload(b, h);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < x.cols; j++) ref_put(truth, i, j, 2);
    ref_hessian(x, truth);
    assert_ok(ql_hessian(b->ctx, upload(b, x), dh));
    download(b, dh, h);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < i; j++) assert_true(ref_at(h, i, j) == 2);
    assert_close(h, truth, bound);
}

static void hessian_first_rows(void **state) {
    backend *b = *state;
    const int64_t rows[] = {1, 100, 128, 129, 256, 300, 523};
    for (int i = 0; i < 7; i++) {
        check_first_rows(b, normal(b, 21, 523, 4), QL_F32, rows[i], 1e-5);
        check_first_rows(b, normal(b, 21, 523, 4), QL_F64, rows[i], 1e-14);
        check_first_rows(b, narrowed(b, normal(b, 21, 523, 4)), QL_F32, rows[i], 1e-5);
    }
}

/* The bits of the whole, of one step and of the odd rest, over two batches. */
static void hessian_stripes_have_the_bits_of_the_whole(void **state) {
    backend *b = *state;
    enum { K = QL_HESSIAN_STEP + 205, TOKENS = 9, FIRST = 4 };
    const int64_t rows[] = {0, QL_HESSIAN_STEP, K};
    ql_mat single = normal(b, TOKENS, K, 1), half = narrowed(b, single);
    for (int type = 0; type < 4; type++) {
        const ql_dtype sums = type < 2 ? QL_F32 : QL_F64;
        ql_mat x = upload(b, type % 2 ? half : single), h = filled(b, sums, K, K, 0.25), whole = upload(b, h);
        assert_ok(ql_hessian(b->ctx, ql_rows(x, 0, FIRST), whole));
        assert_ok(ql_hessian(b->ctx, ql_rows(x, FIRST, TOKENS - FIRST), whole));
        for (int i = 0; i < 2; i++) {
            const int64_t row = rows[i], count = rows[i + 1] - row, cols = K - row;
            ql_mat stripe = upload(b, filled(b, sums, count, cols, 0.25)), columns = ql_cols(x, row, cols);
            assert_ok(ql_hessian(b->other, ql_rows(columns, 0, FIRST), stripe));
            assert_ok(ql_hessian(b->other, ql_rows(columns, FIRST, TOKENS - FIRST), stripe));
            download(b, whole, h);
            ql_mat part = poisoned(b, sums, count, cols);
            download(b, stripe, part);
            assert_same_bits(part, ql_cols(ql_rows(h, row, count), row, cols));
        }
    }
}

/* ---- the maps of cuda/syrk.cu --------------------------------------------------------------------------------------------------- */

static void syrk_tiles_cover_the_triangle_once(void **state) {
    (void)state;
    for (int64_t across = 1; across <= 40; across++)
        for (int64_t down = 1; down <= across; down++) {
            uint8_t *seen = calloc((size_t)(across * across), 1);
            assert_non_null(seen);
            for (int64_t i = 0; i < ql_syrk_tiles(down, across); i++) {
                int64_t row, col;
                ql_syrk_tile_at(i, down, across, &row, &col);
                assert_true(0 <= row && row < down && row <= col && col < across);
                assert_int_equal(seen[row * across + col]++, 0);
            }
            for (int64_t row = 0; row < down; row++)
                for (int64_t col = row; col < across; col++) assert_int_equal(seen[row * across + col], 1);
            free(seen);
        }
}

/* Tiles of 128 x 256: every element on and above the diagonal in one of them, and none that lies below altogether. */
static void syrk_wide_tiles_cover_the_triangle_once(void **state) {
    (void)state;
    for (int64_t across = 1; across <= 30; across++)
        for (int64_t down = 1; down <= across; down++) {
            uint8_t *seen = calloc((size_t)(2 * across * across), 1);
            assert_non_null(seen);
            for (int64_t i = 0; i < ql_syrk_wide_tiles(down, across); i++) {
                int row, col;
                ql_syrk_wide_at(i, down, across, &row, &col);
                assert_true(0 <= row && row < 2 * down && row / 2 <= col && col < across);
                assert_int_equal(seen[row * across + col]++, 0);
            }
            for (int64_t row = 0; row < 2 * down; row++)
                for (int64_t col = 0; col < across; col++)
                    assert_int_equal(seen[row * across + col], 128 * row <= 256 * col + 255);
            free(seen);
        }
}

/* A wave of 132 blocks reads few columns of tiles. */
static void syrk_neighbours_share_tokens(void **state) {
    (void)state;
    const int64_t across = 224, wave = 132;
    for (int64_t first = 0; first + wave <= ql_syrk_tiles(across, across); first += wave) {
        uint8_t seen[224] = {0};
        int64_t count = 0;
        for (int64_t i = first; i < first + wave; i++) {
            int64_t row, col;
            ql_syrk_tile_at(i, across, across, &row, &col);
            count += !seen[row] + !seen[col] - (row == col && !seen[row]);
            seen[row] = seen[col] = 1;
        }
        assert_true(count <= 48); /* twice 8 + 17, less where a wave begins in one band and ends in the next */
    }
}

/* Every piece has one aligned place, and the eight rows of a matrix lie in different banks (16 bytes of the 128 in a wavefront). */
static void fragment_places_are_apart(void **state) {
    (void)state;
    for (int pieces = 8; pieces <= 32; pieces *= 2) {
        uint8_t seen[32 * 32 * QL_PIECE] = {0};
        for (int row = 0; row < 32; row++)
            for (int piece = 0; piece < pieces; piece++) {
                int place = ql_place(row, piece, pieces);
                assert_true(place >= 0 && place < 32 * pieces * QL_PIECE && place % QL_PIECE == 0);
                assert_int_equal(seen[place]++, 0);
            }
        for (int lane = 0; lane < 32; lane += 8)
            for (int piece = 0; piece < pieces - 1; piece++) {
                unsigned across = 0, down = 0;
                for (int l = lane; l < lane + 8; l++) {
                    across |= 1u << ql_place(ql_across_row(l), piece + ql_across_piece(l), pieces) / QL_PIECE % 8;
                    down |= 1u << ql_place(ql_down_row(l), piece + ql_down_piece(l), pieces) / QL_PIECE % 8;
                }
                assert_int_equal(across, 0xff);
                assert_int_equal(down, 0xff);
            }
    }
}

/* Four matrices make 16 rows of two pieces, and the values of 32 lanes 16 x 8 sums. */
static void fragments_are_whole(void **state) {
    (void)state;
    uint8_t across[16][2] = {{0}}, down[16][2] = {{0}}, value[16][8] = {{0}};
    for (int lane = 0; lane < 32; lane++) {
        across[ql_across_row(lane)][ql_across_piece(lane)]++;
        down[ql_down_row(lane)][ql_down_piece(lane)]++;
        for (int i = 0; i < 4; i++) value[ql_sum_row(lane, i)][ql_sum_col(lane, i)]++;
    }
    for (int i = 0; i < 16; i++) {
        for (int p = 0; p < 2; p++) assert_true(across[i][p] == 1 && down[i][p] == 1);
        for (int c = 0; c < 8; c++) assert_int_equal(value[i][c], 1);
    }
}

static void hessian_refuses_what_does_not_fit(void **state) {
    backend *b = *state;
    ql_mat x = upload(b, normal(b, 3, 8, 1)), h = upload(b, normal(b, 8, 8, 2)), half = h;
    half.dtype = QL_BF16;
    assert_refused(ql_hessian(b->ctx, x, ql_cols(h, 0, 7)), QL_INVALID, "h: has 7 columns, expected 8");
    assert_refused(ql_hessian(b->ctx, ql_cols(x, 0, 7), ql_cols(h, 0, 7)), QL_INVALID,
                   "h: has 8 rows, expected at most 7");
    assert_refused(ql_hessian(b->ctx, x, half), QL_INVALID, "h: is BF16");
    half.dtype = QL_F16;
    assert_refused(ql_hessian(b->ctx, half, h), QL_INVALID, "x: is F16");
}

/* ---- moments ------------------------------------------------------------------------------------------------------------------ */

static void check_moments(backend *b, ql_mat x) {
    int64_t k = x.cols;
    ql_mat m[4], d[4], again[4];
    const double initial[] = {0.25, 0.5, INFINITY, -INFINITY};
    for (int i = 0; i < 4; i++) {
        m[i] = filled(b, i < 2 ? QL_F64 : QL_F32, 1, k, initial[i]);
        d[i] = upload(b, m[i]), again[i] = upload(b, m[i]);
    }
    ql_mat dx = upload(b, x);
    assert_ok(ql_moments(b->ctx, dx, d[0], d[1], d[2], d[3]));
    assert_ok(ql_moments(b->other, dx, again[0], again[1], again[2], again[3]));
    for (int i = 0; i < 4; i++) {
        download(b, d[i], m[i]);
        assert_same_bits_on_device(b, d[i], again[i]);
    }
    for (int64_t c = 0; c < k; c++) {
        double square = 0.25, magnitude = 0.5, min = INFINITY, max = -INFINITY;
        for (int64_t r = 0; r < x.rows; r++) {
            double value = ref_at(x, r, c);
            square += value * value, magnitude += fabs(value);
            min = fmin(min, value), max = fmax(max, value);
        }
        /* Double sums in another order: m 2^-53. */
        assert_true(fabs(ref_at(m[0], 0, c) - square) <= 1e-13 * square);
        assert_true(fabs(ref_at(m[1], 0, c) - magnitude) <= 1e-13 * magnitude);
        assert_true(ref_at(m[2], 0, c) == min && ref_at(m[3], 0, c) == max);
    }
}

static void moments_odd_sizes(void **state) {
    check_moments(*state, normal(*state, 1, 1, 1));
    check_moments(*state, outliers(*state, 131, 259, 2));
    check_moments(*state, narrowed(*state, outliers(*state, 131, 259, 2)));
}

/* ---- abs_hist ------------------------------------------------------------------------------------------------------------------ */

static void check_abs_hist(backend *b, ql_mat x) {
    ql_mat count = filled(b, QL_U64, 1, 32768, 5), dcount = upload(b, count);
    const double special[] = {0,         -0.0,  INFINITY,
                              -INFINITY, 1e-45, -3.4e38}; /* in BF16 the last two round when they are put */
    for (int64_t c = 0; c < 6; c++) ref_put(x, 5, c, special[c]);
    uint64_t *expected = calloc(32768, sizeof *expected);
    for (int64_t r = 0; r < x.rows; r++)
        for (int64_t c = 0; c < x.cols; c++) expected[ql_f32_to_bf16((float)ref_at(x, r, c)) & 0x7fff]++;
    assert_int_equal(expected[0], 3);      /* both zeros and the subnormal that rounds down */
    assert_int_equal(expected[0x7f80], 3); /* both infinities and -3.4e38, which rounds up to one */
    ql_mat dx = upload(b, x);
    assert_ok(ql_abs_hist(b->ctx, dx, dcount));
    assert_ok(ql_abs_hist(b->other, dx, dcount));
    download(b, dcount, count);
    for (int64_t i = 0; i < 32768; i++) assert_true(((uint64_t *)count.data)[i] == 5 + 2 * expected[i]);
    free(expected);
    assert_refused(ql_abs_hist(b->ctx, dx, ql_cols(dcount, 0, 100)), QL_INVALID, "expected 32768");
}

static void abs_hist_counts_every_value(void **state) {
    check_abs_hist(*state, outliers(*state, 67, 259, 1));
    check_abs_hist(*state, narrowed(*state, outliers(*state, 67, 259, 1)));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hessian_odd_sizes),
        cmocka_unit_test(hessian_crosses_tiles),
        cmocka_unit_test(hessian_in_double),
        cmocka_unit_test(hessian_of_bf16_with_tails),
        cmocka_unit_test(hessian_of_bf16_with_many_tokens),
        cmocka_unit_test(hessian_of_bf16_repeats_and_chunks),
        cmocka_unit_test(hessian_first_rows),
        cmocka_unit_test(hessian_stripes_have_the_bits_of_the_whole),
        cmocka_unit_test(syrk_tiles_cover_the_triangle_once),
        cmocka_unit_test(syrk_wide_tiles_cover_the_triangle_once),
        cmocka_unit_test(syrk_neighbours_share_tokens),
        cmocka_unit_test(fragment_places_are_apart),
        cmocka_unit_test(fragments_are_whole),
        cmocka_unit_test(hessian_refuses_what_does_not_fit),
        cmocka_unit_test(moments_odd_sizes),
        cmocka_unit_test(abs_hist_counts_every_value),
    };
    return run_on_backends(tests);
}
