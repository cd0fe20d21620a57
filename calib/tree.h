/* Sums over the calibration rows whose bits depend on the rows alone: not on threads, nor on how many ranks share the rows.
 *
 * The rows (sequences) form 64 leaves of neighbours, by their index and count alone.  What is summed within a leaf has a fixed order;
 * leaves are added in pairs, pairs in pairs, along one binary tree.  Nodes without any row are passed over.
 *
 *            [0,64)                  node (6, 0)
 *        [0,32)   [32,64)            nodes (5, 0), (5, 1)
 *          ...      ...
 *      0  1  2  3  ... 62 63         leaves: nodes (0, i)
 *
 * Only what a sum of its left neighbours needs is kept, like the digits of a counter that goes up: of 64 leaves 7 matrices at most.
 *
 *   tree t;  QL_TRY(tree_open(ctx, &hessian, true, s, arena, &t));            // hessian: zeros
 *   for each leaf of s that has rows:  QL_TRY(tree_leaf(&t));  ... add to `hessian` ...  QL_TRY(tree_close(&t, leaf));
 *   // now `hessian` is the sum
 */
#ifndef CALIB_TREE_H
#define CALIB_TREE_H

#include <stdbool.h>

#include "host/mem.h"

enum {
    LEAVES = 64,
    HESSIAN_STRIPE = 2048, /* rows of a Hessian that are summed at a time; a multiple of QL_HESSIAN_STEP */
    DRIFT_STRIPE = 4096,   /* ... of a drift, for each of which o or down is multiplied once more */
    TREE_DEPTH = 16
}; /* two fringes of a share, each at most one node of every level below the root, and a leaf */

/* Which leaves somebody sums, [first, end), of n rows in all. */
typedef struct leaf_range {
    int64_t first, end, rows;
} leaf_range;

/* The first row of a leaf; that of leaf LEAVES is the number of rows. */
static inline int64_t leaf_begin(int64_t leaf, int64_t rows) { return leaf * rows / LEAVES; }
static inline bool leaf_is_empty(int64_t leaf, int64_t rows) {
    return leaf_begin(leaf, rows) == leaf_begin(leaf + 1, rows);
}

/* Leaves [index << level, (index + 1) << level) of the tree, and their sum. */
typedef struct tree_node {
    int level;
    int64_t index;
    ql_mat sum;
} tree_node;

typedef struct tree {
    ql_ctx *ctx;
    ql_mat *into; /* the sum of the current leaf */
    bool upper;   /* of square matrices whose lower triangle is zero */
    int64_t rows;
    int used, touched;
    tree_node node[TREE_DEPTH]; /* [used] are done, from left to right; [touched] have held a sum */
} tree;

/* Most matrices alive at a time for these leaves. */
int tree_matrices(leaf_range leaves);

/* The nodes that these leaves complete, from left to right; returns how many. */
int tree_nodes(leaf_range leaves, tree_node node[TREE_DEPTH]);

/* The last of `used` nodes goes up while nothing is missing beside it.  True: it belongs to its left neighbour, which has become their
 * parent; the caller adds the last to it and goes on with one node less. */
bool tree_climb(tree_node *node, int used, int64_t rows);

/* *into: zeros, F32 or F64; where the sum will stand.  More like it come from `arena`. */
ql_status tree_open(ql_ctx *ctx, ql_mat *into, bool upper, leaf_range s, ql_arena *arena, tree *t);
/* *into becomes zeros for the rows of this leaf.  Leaves come in order; those without rows are left out. */
ql_status tree_leaf(tree *t);
/* Everything of the leaf was added to *into. */
ql_status tree_close(tree *t, int64_t leaf);

#endif
