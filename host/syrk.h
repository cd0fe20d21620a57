/* Who computes what of H += X^T X on the GPU.   X [m][k], H [r][k], the first rows of the upper triangle
 *
 * Pure functions, once for gcc and nvcc; tests/test_hessian.c walks all tiles.
 */
#ifndef HOST_SYRK_H
#define HOST_SYRK_H

#include "host/num.h"

/* BAND: 132 blocks that run side by side in bands of 8 tiles read 8 + 17 columns of tiles of X, in rows they would read 133. */
enum { QL_SYRK_TILE = 128, QL_SYRK_BAND = 8 };

/* Tiles on and above the diagonal in the first `down` rows of a square of `across` x `across` tiles. */
QL_BOTH int64_t ql_syrk_tiles(int64_t down, int64_t across) { return down * across - down * (down - 1) / 2; }

/* Row and column of tile number 0 .. ql_syrk_tiles - 1: bands of 8 rows from above, each by columns, which are shorter where the
 * band meets the diagonal. */
QL_BOTH void ql_syrk_tile_at(int64_t number, int64_t down, int64_t across, int64_t *row, int64_t *col) {
    int64_t top = 0, height, step = 0;
    for (;; top += height) {
        height = down - top < QL_SYRK_BAND ? down - top : QL_SYRK_BAND;
        int64_t size = ql_syrk_tiles(height, across - top);
        if (number < size) break;
        number -= size;
    }
    for (; step < height && number > step; step++) number -= step + 1;
    *row =
        top + (int32_t)number %
                  (int32_t)height; /* a band has fewer than 2^31 tiles; 64-bit division costs the kernels registers */
    *col = top + step + (int32_t)number / (int32_t)height;
}

/* Tiles of 128 x 256 (cuda/syrk_sm90.cu): two, one above the other, for each tile of 256 x 256 on and above the diagonal of `down` rows of
 * them; the lower one on the diagonal is half empty. */
QL_BOTH int64_t ql_syrk_wide_tiles(int64_t down, int64_t across) { return 2 * ql_syrk_tiles(down, across); }
QL_BOTH void ql_syrk_wide_at(int64_t number, int64_t down, int64_t across, int *row, int *col) {
    int64_t square_row, square_col;
    ql_syrk_tile_at(number / 2, down, across, &square_row, &square_col);
    *row = (int)(2 * square_row + number % 2);
    *col = (int)square_col;
}

#endif
