#include "calib/tree.h"

#include "calib/capture.h"
#include "host/mat.h"

static bool is_empty(int64_t rows, int level, int64_t index) {
    return leaf_begin(index << level, rows) == leaf_begin((index + 1) << level, rows);
}

bool tree_climb(tree_node *node, int used, int64_t rows) {
    tree_node *last = &node[used - 1], *before = last - 1;
    while (LEAVES >> last->level > 1) {
        int64_t sibling = last->index ^ 1;
        if (used > 1 && before->level == last->level && before->index == sibling) {
            before->level++, before->index >>= 1;
            return true;
        }
        if (!is_empty(rows, last->level, sibling)) return false;
        last->level++, last->index >>= 1;
    }
    return false;
}

/* The nodes that these leaves complete, from left to right; *most: at one time. */
static int find_nodes(leaf_range leaves, tree_node *node, int *most) {
    int used = 0;
    for (int64_t leaf = leaves.first; leaf < leaves.end; leaf++) {
        if (leaf_is_empty(leaf, leaves.rows)) continue;
        node[used++] = (tree_node){.index = leaf};
        if (used > *most) *most = used;
        while (tree_climb(node, used, leaves.rows)) used--;
    }
    return used;
}

int tree_nodes(leaf_range leaves, tree_node node[TREE_DEPTH]) {
    int most = 0;
    return find_nodes(leaves, node, &most);
}

int tree_matrices(leaf_range leaves) {
    tree_node node[TREE_DEPTH];
    int most = 1;
    find_nodes(leaves, node, &most);
    return most;
}

ql_status tree_open(ql_ctx *ctx, ql_mat *into, bool upper, leaf_range s, ql_arena *arena, tree *t) {
    *t = (tree){.ctx = ctx, .into = into, .upper = upper, .rows = s.rows};
    t->node[0].sum = *into;
    for (int i = 1; i < tree_matrices(s); i++)
        QL_TRY(capture_zeros(ctx, into->dtype, into->rows, into->cols, arena, &t->node[i].sum));
    return QL_OK;
}

/* x += alpha y, or the part on and above the diagonal, cut into steps. */
static ql_status add(const tree *t, ql_mat x, float alpha, ql_mat y) {
    enum { STEP = 256 };
    if (!t->upper) return ql_add(t->ctx, x, alpha, y);
    for (int64_t row = 0; row < x.rows; row += STEP) {
        int64_t rows = x.rows - row < STEP ? x.rows - row : STEP;
        QL_TRY(ql_add(t->ctx, ql_cols(ql_rows(x, row, rows), row, x.cols - row), alpha,
                      ql_cols(ql_rows(y, row, rows), row, y.cols - row)));
    }
    return QL_OK;
}

/* Memory is as tree_open made it, or holds a sum that has been added: x - x is zero, or NaN where x was not finite, and then so is
 * the sum. */
ql_status tree_leaf(tree *t) {
    ql_mat sum = t->node[t->used].sum;
    *t->into = sum;
    if (t->used < t->touched) return add(t, sum, -1, sum);
    t->touched = t->used + 1;
    return QL_OK;
}

ql_status tree_close(tree *t, int64_t leaf) {
    t->node[t->used].level = 0;
    t->node[t->used].index = leaf;
    t->used++;
    while (tree_climb(t->node, t->used, t->rows)) {
        QL_TRY(add(t, t->node[t->used - 2].sum, 1, t->node[t->used - 1].sum));
        t->used--;
    }
    *t->into = t->node[0].sum;
    return QL_OK;
}
