/* Who computes what of H += X^T X on the GPU, and where it lies meanwhile.   X [m][k], H [k][k], upper triangle
 *
 * Pure functions, once for gcc and nvcc; tests/test_hessian.c walks all of them.
 */
#ifndef HOST_SYRK_H
#define HOST_SYRK_H

#include "host/num.h"

/* BAND: 132 blocks that run side by side in bands of 8 tiles read 8 + 17 columns of tiles of X, in rows they would read 133. */
enum { QL_SYRK_TILE = 128, QL_SYRK_BAND = 8 };

/* Tiles on and above the diagonal of a square of `across` x `across` tiles. */
QL_BOTH int64_t ql_syrk_tiles(int64_t across) { return across * (across + 1) / 2; }

/* Row and column of tile number 0 .. ql_syrk_tiles - 1: bands of 8 rows from above, each by columns, which are shorter where the
 * band meets the diagonal. */
QL_BOTH void ql_syrk_tile_at(int64_t number, int64_t across, int64_t *row, int64_t *col) {
    int64_t top = 0, step = 0;
    for (;; top += QL_SYRK_BAND) {
        int64_t below = across - top > QL_SYRK_BAND ? across - top - QL_SYRK_BAND : 0;
        int64_t size = ql_syrk_tiles(across - top) - ql_syrk_tiles(below);
        if (number < size) break;
        number -= size;
    }
    for (; step < QL_SYRK_BAND && number > step; step++) number -= step + 1;
    *row = top + number % QL_SYRK_BAND;
    *col = top + step + number / QL_SYRK_BAND;
}

/* Tokens of a tile lie in shared memory in rows of 128 16-bit values, 16 pieces of 16 bytes.  Piece p of row t stands at p ^ t % 8:
 * the eight rows that a fragment is loaded from then lie in different banks.  The result counts values. */
enum { QL_SYRK_PIECE = 8, QL_SYRK_PIECES = QL_SYRK_TILE / QL_SYRK_PIECE };
QL_BOTH int ql_syrk_place(int token, int piece) { return token * QL_SYRK_TILE + (piece ^ (token % 8)) * QL_SYRK_PIECE; }

/* A fragment of 16 tokens x 16 columns is four matrices of 8 x 8.  Lane l points at row l % 8 of matrix l / 8.  As the left operand
 * (columns of X are rows of H) the second matrix has the next columns and the third the next tokens; as the right one it is the
 * other way round. */
QL_BOTH int ql_syrk_left_token(int lane) { return lane / 16 * 8 + lane % 8; }
QL_BOTH int ql_syrk_left_piece(int lane) { return lane / 8 % 2; }
QL_BOTH int ql_syrk_right_token(int lane) { return lane / 8 % 2 * 8 + lane % 8; }
QL_BOTH int ql_syrk_right_piece(int lane) { return lane / 16; }

/* Row and column, within a 16 x 8 piece of H, of value i = 0 .. 3 of a lane. */
QL_BOTH int ql_syrk_row(int lane, int i) { return lane / 4 + i / 2 * 8; }
QL_BOTH int ql_syrk_col(int lane, int i) { return lane % 4 * 2 + i % 2; }

#endif
