/* Values of one byte: scales from the values, rounding, and back.   x [rows][cols] F32, F16 or BF16
 * Every tile is read twice, for its range and for its codes; the arithmetic is that of host/values.h. */
#include "host/values.h"

#include "host/ops.h"

static const void *row_of(ql_mat mat, int64_t row) { return ql_rows(mat, row, 1).data; }

static ql_extent range_of(ql_mat tile) {
    ql_extent range = {0, 0};
    for (int64_t r = 0; r < tile.rows; r++) {
        const void *row = row_of(tile, r);
        for (int64_t c = 0; c < tile.cols; c++) range = ql_extent_with(range, ql_value_at(row, tile.dtype, c));
    }
    return range;
}

static void put_scale(const ql_values *values, int64_t i, int64_t j, ql_extent range) {
    int32_t zero;
    int64_t at = ql_tile_index(values->mode, values->scale, i, j);
    ((float *)values->scale.data)[at] = ql_extent_scale(range, values->codes.dtype, &zero);
    if (ql_is_present(values->zero))
        ((int32_t *)values->zero.data)[ql_tile_index(values->mode, values->zero, i, j)] = zero;
}

static void fit_tensor(ql_ctx *ctx, ql_mat x, const ql_values *values) {
    float up = 0, down = 0;
#pragma omp parallel for schedule(static) reduction(max : up, down) num_threads(ctx->threads)
    for (int64_t r = 0; r < x.rows; r++) {
        ql_extent range = range_of(ql_rows(x, r, 1));
        up = range.up > up ? range.up : up;
        down = range.down > down ? range.down : down;
    }
    put_scale(values, 0, 0, (ql_extent){up, down});
}

static void fit_tiles(ql_ctx *ctx, ql_mat x, const ql_values *values) {
    ql_tiling tiling = ql_tiling_of(values->mode, values->group, x.rows, x.cols);
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t i = 0; i < ql_ceil_div(x.rows, tiling.rows); i++)
        for (int64_t j = 0; j < tiling.across; j++) {
            int64_t row = i * tiling.rows, col = j * tiling.cols;
            ql_mat tile = ql_rows(x, row, x.rows - row < tiling.rows ? x.rows - row : tiling.rows);
            tile = ql_cols(tile, col, x.cols - col < tiling.cols ? x.cols - col : tiling.cols);
            put_scale(values, i, j, range_of(tile));
        }
}

/* Scale and zero point of column `col` of row `row`. */
static float tile_scale(const ql_values *values, ql_tiling tiling, int64_t row, int64_t col, int32_t *zero) {
    int64_t i = row / tiling.rows, j = col / tiling.cols;
    *zero = ql_is_present(values->zero)
                ? ((const int32_t *)values->zero.data)[ql_tile_index(values->mode, values->zero, i, j)]
                : 0;
    return ((const float *)values->scale.data)[ql_tile_index(values->mode, values->scale, i, j)];
}

ql_status ql_cpu_quantize_dynamic(ql_ctx *ctx, ql_mat x, const ql_values *values) {
    if (values->mode == QL_SCALE_TENSOR) fit_tensor(ctx, x, values);
    else fit_tiles(ctx, x, values);
    return ql_cpu_quantize_static(ctx, x, values);
}

ql_status ql_cpu_quantize_static(ql_ctx *ctx, ql_mat x, const ql_values *values) {
    const ql_dtype dtype = values->codes.dtype;
    ql_tiling tiling = ql_tiling_of(values->mode, values->group, x.rows, x.cols);
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < x.rows; r++) {
        const void *from = row_of(x, r);
        uint8_t *to = (uint8_t *)values->codes.data + r * values->codes.ld;
        for (int64_t c = 0; c < x.cols;) {
            int32_t zero;
            float scale = tile_scale(values, tiling, r, c, &zero);
            int64_t end = x.cols - c < tiling.cols ? x.cols : c + tiling.cols;
            for (; c < end; c++) to[c] = ql_value_to_code(ql_value_at(from, x.dtype, c), scale, zero, dtype);
        }
    }
    return QL_OK;
}

ql_status ql_cpu_dequantize_values(ql_ctx *ctx, const ql_values *values, ql_mat x) {
    const ql_dtype dtype = values->codes.dtype;
    ql_tiling tiling = ql_tiling_of(values->mode, values->group, x.rows, x.cols);
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < x.rows; r++) {
        const uint8_t *from = (const uint8_t *)values->codes.data + r * values->codes.ld;
        void *to = ql_rows(x, r, 1).data;
        for (int64_t c = 0; c < x.cols;) {
            int32_t zero;
            double scale = tile_scale(values, tiling, r, c, &zero);
            int64_t end = x.cols - c < tiling.cols ? x.cols : c + tiling.cols;
            for (; c < end; c++) ql_put_value(to, x.dtype, c, scale * ql_code_to_value(from[c], zero, dtype));
        }
    }
    return QL_OK;
}
