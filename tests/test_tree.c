/* Sums along the tree: the same bits as the definition, however many ranks share the leaves. */
#include "tests/test.h"

#include <string.h>

#include "calib/capture.h"
#include "calib/tree.h"
#include "host/mat.h"
#include "host/rng.h"

enum { K = 5 };

/* What a leaf adds: values of very different sizes, so that every other order of adding gives other bits. */
static float value_of(int64_t leaf, int64_t i) {
    uint64_t bits = ql_random(11, (uint64_t)(leaf * 1000 + i));
    return (float)((double)(int64_t)bits / 0x1p63) * (float)(1 << (bits & 15));
}

/* The definition: a node is the sum of its two halves, one without rows is not there. */
static bool naive_node(int64_t first, int64_t count, int64_t rows, int64_t i, float *sum) {
    float left = 0, right = 0;
    if (leaf_begin(first, rows) == leaf_begin(first + count, rows)) return false;
    if (count == 1) {
        *sum = value_of(first, i);
        return true;
    }
    bool has_left = naive_node(first, count / 2, rows, i, &left),
         has_right = naive_node(first + count / 2, count / 2, rows, i, &right);
    *sum = has_left && has_right ? left + right : has_left ? left : right;
    return true;
}

static void leaves_divide_all_rows(void **state) {
    (void)state;
    const int64_t counts[] = {1, 2, 63, 64, 65, 100, 128, 100000};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        int64_t most = 0, least = INT64_MAX;
        assert_int_equal(leaf_begin(0, counts[c]), 0);
        assert_int_equal(leaf_begin(LEAVES, counts[c]), counts[c]);
        for (int64_t leaf = 0; leaf < LEAVES; leaf++) {
            int64_t size = leaf_begin(leaf + 1, counts[c]) - leaf_begin(leaf, counts[c]);
            most = size > most ? size : most, least = size < least ? size : least;
        }
        assert_true(least >= 0 && most - least <= 1);
    }
}

static void add_leaf(ql_mat sum, int64_t leaf) {
    for (int64_t i = 0; i < K * K; i++)
        if (sum.dtype == QL_F64) ((double *)sum.data)[i] += value_of(leaf, i);
        else ((float *)sum.data)[i] += value_of(leaf, i);
}

static void one_rank_adds_along_the_tree(void **state) {
    (void)state;
    ql_ctx *ctx;
    ql_arena *arena;
    const int64_t counts[] = {1, 2, 3, 5, 8, 63, 64, 65, 128, 1000};
    assert_ok(ql_ctx_open("cpu", 1, &ctx));
    assert_ok(ql_arena_open(ctx, &arena));
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
        const leaf_range all = {0, LEAVES, counts[c]};
        tree t;
        ql_mat sum;
        assert_ok(capture_zeros(ctx, QL_F32, K, K, arena, &sum));
        const void *given = sum.data;
        assert_ok(tree_open(ctx, &sum, false, all, arena, &t));
        for (int64_t leaf = 0; leaf < LEAVES; leaf++) {
            if (leaf_is_empty(leaf, counts[c])) continue;
            assert_ok(tree_leaf(&t));
            add_leaf(sum, leaf);
            assert_ok(tree_close(&t, leaf));
        }
        assert_ptr_equal(sum.data, given);
        for (int64_t i = 0; i < K * K; i++) {
            float expected;
            assert_true(naive_node(0, LEAVES, counts[c], i, &expected));
            assert_memory_equal((float *)sum.data + i, &expected, sizeof expected);
        }
    }
    ql_arena_close(arena);
    ql_ctx_close(ctx);
}

/* A counter of six digits, and the leaf itself. */
static void seven_matrices_are_enough(void **state) {
    (void)state;
    assert_int_equal(tree_matrices((leaf_range){0, LEAVES, 1000}), 7);
    assert_int_equal(tree_matrices((leaf_range){0, LEAVES, 64}), 7);
    assert_int_equal(tree_matrices((leaf_range){0, LEAVES, 1}), 1);
    for (int64_t first = 0; first < LEAVES; first++)
        for (int64_t end = first; end <= LEAVES; end++)
            assert_true(tree_matrices((leaf_range){first, end, 1000}) < TREE_DEPTH);
}

/* Whatever the leaves of a rank complete, added along the tree over all ranks; a rank has ten nodes at most. */
static void any_number_of_ranks_gives_the_same_sum(void **state) {
    (void)state;
    const int64_t counts[] = {1, 3, 40, 63, 64, 65, 1000};
    for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++)
        for (int ranks = 1; ranks <= LEAVES; ranks++) {
            tree_node stack[TREE_DEPTH], own[TREE_DEPTH];
            float sums[TREE_DEPTH], expected = 0;
            int used = 0;
            for (int r = 0; r < ranks; r++) {
                int nodes = tree_nodes((leaf_range){LEAVES * r / ranks, LEAVES * (r + 1) / ranks, counts[c]}, own);
                assert_true(nodes <= 10);
                for (int i = 0; i < nodes; i++) {
                    assert_true(naive_node(own[i].index << own[i].level, 1 << own[i].level, counts[c], 7, &sums[used]));
                    stack[used++] = own[i];
                    for (; tree_climb(stack, used, counts[c]); used--) sums[used - 2] += sums[used - 1];
                }
            }
            assert_int_equal(used, 1);
            assert_true(naive_node(0, LEAVES, counts[c], 7, &expected));
            assert_memory_equal(sums, &expected, sizeof expected);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(leaves_divide_all_rows),
        cmocka_unit_test(one_rank_adds_along_the_tree),
        cmocka_unit_test(seven_matrices_are_enough),
        cmocka_unit_test(any_number_of_ranks_gives_the_same_sum),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
