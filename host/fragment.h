/* Matrices of 16-bit values on their way to tensor cores: places in shared memory, and what each lane of a warp points at and
 * holds.  Pure functions, once for gcc and nvcc; tests/test_hessian.c walks all of them.
 */
#ifndef HOST_FRAGMENT_H
#define HOST_FRAGMENT_H

#include "host/num.h"

enum { QL_PIECE = 8 /* values of 16 bytes: what is copied and loaded at once */ };

/* Where a piece stands in a tile whose rows have `pieces` of them, a multiple of 8, in values.  Piece p of row r changes places with
 * p ^ r % 8: the eight rows that a fragment is loaded from then lie in different banks. */
QL_BOTH int ql_place(int row, int piece, int pieces) { return (row * pieces + (piece ^ (row % 8))) * QL_PIECE; }

/* 16 rows of two pieces are loaded as four matrices of 8 rows of one piece: lane l points at row l % 8 of matrix l / 8.  Across: the
 * second matrix is the other piece of the same rows.  Down: it is the same piece of the next rows. */
QL_BOTH int ql_across_row(int lane) { return lane / 16 * 8 + lane % 8; }
QL_BOTH int ql_across_piece(int lane) { return lane / 8 % 2; }
QL_BOTH int ql_down_row(int lane) { return lane / 8 % 2 * 8 + lane % 8; }
QL_BOTH int ql_down_piece(int lane) { return lane / 16; }

/* Row and column, within 16 x 8 sums, of value i = 0 .. 3 of a lane. */
QL_BOTH int ql_sum_row(int lane, int i) { return lane / 4 + i / 2 * 8; }
QL_BOTH int ql_sum_col(int lane, int i) { return lane % 4 * 2 + i % 2; }

#endif
