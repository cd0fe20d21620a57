/* Arenas: alignment, reuse after release, peak, overflow. */
#include "tests/test.h"

#include "host/mem.h"

static void arena_release_reuses_memory(void **state) {
    (void)state;
    ql_arena *arena;
    assert_ok(ql_arena_open(NULL, &arena));
    ql_mark mark = ql_arena_mark(arena);
    char *first, *second, *big;
    assert_ok(ql_take(arena, 1000, 1, &first));
    assert_ok(ql_take(arena, 1 << 20, 1, &big));
    memset(big, 7, 1 << 20);
    size_t peak = ql_arena_peak(arena);
    ql_arena_release(arena, mark);
    assert_ok(ql_take(arena, 1000, 1, &second));
    assert_ptr_equal(first, second);
    assert_int_equal(second[999], 0); /* host memory comes zeroed, reused or not */
    assert_int_equal(ql_arena_peak(arena), peak);
    ql_arena_close(arena);
}

static void arena_aligns_large_blocks(void **state) {
    (void)state;
    ql_arena *arena;
    assert_ok(ql_arena_open(NULL, &arena));
    char *text;
    assert_ok(ql_arena_format(arena, &text, "%d-%s", 12, "ab"));
    assert_string_equal(text, "12-ab");
    for (size_t size = 256; size < 5000; size += 331) {
        void *data;
        assert_ok(ql_take(arena, size, 1, &data));
        assert_int_equal((uintptr_t)data % 256, 0);
    }
    ql_arena_close(arena);
}

static void arena_refuses_overflowing_products(void **state) {
    (void)state;
    ql_arena *arena;
    assert_ok(ql_arena_open(NULL, &arena));
    void *data;
    assert_refused(ql_take(arena, SIZE_MAX / 2, 4, &data), QL_NOMEM, "no memory");
    assert_refused(ql_take(arena, SIZE_MAX - 3, 1, &data), QL_NOMEM, "no memory");
    ql_mat mat;
    assert_refused(ql_arena_mat(arena, QL_F32, INT64_MAX, 3, &mat), QL_INVALID, "x 3");
    assert_refused(ql_arena_mat(arena, QL_F32, -1, 3, &mat), QL_INVALID, "-1");
    ql_arena_close(arena);
}

/* Large, small, large: without a reserve each would have a chunk of its own, and the second would leave a hole in the first's. */
static void arena_reserves_one_piece(void **state) {
    (void)state;
    ql_arena *arena;
    char *big, *small, *other, *more;
    assert_ok(ql_arena_open(NULL, &arena));
    assert_ok(ql_arena_reserve(arena, 3 << 20));
    for (int i = 0; i < 2; i++) {
        assert_ok(ql_take(arena, 2 << 20, 1, &big));
        ql_arena_release(arena, (ql_mark){0});
        assert_ok(ql_take(arena, 4096, 1, &small));
        assert_ok(ql_take(arena, 2 << 20, 1, &other));
        assert_ptr_equal(small, big);
        assert_ptr_equal(other, small + 4096);
        assert_ok(ql_take(arena, 1 << 20, 1, &more)); /* more than was reserved */
        more[(1 << 20) - 1] = 1;
        ql_arena_release(arena, (ql_mark){0});
    }
    ql_arena_close(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(arena_release_reuses_memory),
        cmocka_unit_test(arena_aligns_large_blocks),
        cmocka_unit_test(arena_refuses_overflowing_products),
        cmocka_unit_test(arena_reserves_one_piece),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
