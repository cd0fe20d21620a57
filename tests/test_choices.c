/* The file of measured choices: what is written is read again, what is damaged is passed over. */
#include "tests/scratch.h"

#include "host/choices.h"
#include "host/log.h"

static ql_choice choice_of(int64_t m) {
    ql_choice c = {.library = 130100,
                   .driver = 13000,
                   .gpu = "NVIDIA_H200",
                   .n = 4096,
                   .k = 14336,
                   .m = m,
                   .x = QL_BF16,
                   .y = QL_F32,
                   .bias = 1,
                   .ns = 12340 + m};
    for (int i = 0; i < QL_ALGORITHM_BYTES; i++) c.algorithm[i] = (uint8_t)(i * 37 + m);
    return c;
}

static ql_arena *open_arena(void) {
    ql_arena *arena;
    assert_ok(ql_arena_open(NULL, &arena));
    return arena;
}

static void choices_survive_the_file(void **state) {
    const char *path = scratch_path(state, "choices.txt");
    ql_arena *arena = open_arena();
    ql_choices list = {0}, back;
    for (int64_t m = 1; m <= 100; m++) {
        ql_choice c = choice_of(m);
        assert_ok(ql_choices_put(&list, arena, &c));
    }
    assert_ok(ql_choices_save(path, arena, &list));
    assert_ok(ql_choices_load(path, arena, &back));
    assert_int_equal(back.count, 100);
    for (int64_t m = 1; m <= 100; m++) {
        ql_choice c = choice_of(m);
        const ql_choice *found = ql_choices_find(&back, &c);
        assert_non_null(found);
        assert_int_equal(found->ns, 12340 + m);
        assert_memory_equal(found->algorithm, c.algorithm, QL_ALGORITHM_BYTES);
    }
    ql_arena_close(arena);
}

static void a_missing_file_has_no_choices(void **state) {
    ql_arena *arena = open_arena();
    ql_choices list;
    assert_ok(ql_choices_load(scratch_path(state, "none"), arena, &list));
    assert_int_equal(list.count, 0);
    ql_arena_close(arena);
}

/* Every part of the key decides. */
static void choices_of_others_are_not_found(void **state) {
    (void)state;
    ql_arena *arena = open_arena();
    ql_choices list = {0};
    const ql_choice good = choice_of(1);
    ql_choice c;
    assert_ok(ql_choices_put(&list, arena, &good));
    assert_non_null(ql_choices_find(&list, &good));
#define DIFFERS(change) (c = good, change, assert_null(ql_choices_find(&list, &c)))
    DIFFERS(c.library++);
    DIFFERS(c.driver++);
    DIFFERS(c.gpu[8] = 'B');
    DIFFERS(c.n++);
    DIFFERS(c.k++);
    DIFFERS(c.m++);
    DIFFERS(c.x = QL_F16);
    DIFFERS(c.y = QL_BF16);
    DIFFERS(c.bias = 0);
#undef DIFFERS
    c = good, c.ns = 7;
    assert_ok(ql_choices_put(&list, arena, &c));
    assert_int_equal(list.count, 1);
    assert_int_equal(ql_choices_find(&list, &good)->ns, 7);
    ql_arena_close(arena);
}

static void any_changed_byte_of_a_line_is_noticed(void **state) {
    const char *path = scratch_path(state, "one.txt");
    ql_arena *arena = open_arena();
    ql_choices list = {0};
    ql_choice c = choice_of(5);
    size_t size;
    assert_ok(ql_choices_put(&list, arena, &c));
    assert_ok(ql_choices_save(path, arena, &list));
    char *text = scratch_read(path, &size);
    size_t begin = (size_t)(strchr(text, '\n') + 1 - text);
    ql_log_open(false, QL_ERROR); /* a warning for each would be a wall of text */
    for (size_t i = begin; i + 1 < size; i++) {
        text[i] ^= 1;
        assert_ok(ql_choices_parse("test", text, size, arena, &list));
        assert_int_equal(list.count, 0);
        text[i] ^= 1;
        assert_ok(ql_choices_parse("test", text, i, arena, &list)); /* cut off */
        assert_int_equal(list.count, 0);
    }
    ql_log_open(false, QL_INFO);
    assert_ok(ql_choices_parse("test", text, size, arena, &list));
    assert_int_equal(list.count, 1);
    free(text);
    ql_arena_close(arena);
}

static void other_lines_are_passed_over(void **state) {
    const char *path = scratch_path(state, "mixed.txt");
    ql_arena *arena = open_arena();
    ql_choices list = {0};
    ql_choice c = choice_of(5);
    size_t size;
    assert_ok(ql_choices_put(&list, arena, &c));
    assert_ok(ql_choices_save(path, arena, &list));
    char *good = scratch_read(path, &size), mixed[2048];
    int length = snprintf(mixed, sizeof mixed,
                          "rocblas=1 something new\n\n# a comment\n%s\ncublaslt=99999999999999999999\n", good);
    ql_log_open(false, QL_ERROR);
    assert_ok(ql_choices_parse("test", mixed, (size_t)length, arena, &list));
    ql_log_open(false, QL_INFO);
    assert_int_equal(list.count, 1);
    free(good);
    ql_arena_close(arena);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        scratch_test(choices_survive_the_file),
        scratch_test(a_missing_file_has_no_choices),
        cmocka_unit_test(choices_of_others_are_not_found),
        scratch_test(any_changed_byte_of_a_line_is_noticed),
        scratch_test(other_lines_are_passed_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
