/* Strict JSON: what is refused and where, bounds of the getters, suggestions, canonical text. */
#include "tests/test.h"

#include <unistd.h>

#include "formats/json.h"
#include "formats/json_scan.h"
#include "host/fault.h"
#include "tests/make.h"

static ql_status parse(const char *text, json_t **document) {
    return ql_json_parse("a.json", text, strlen(text), document);
}

static json_t *good(const char *text) {
    json_t *document;
    assert_ok(parse(text, &document));
    return document;
}

static void json_refuses_what_is_not_strict(void **state) {
    (void)state;
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"", "line 1, column 0"},
        {"[]", "expected an object"},
        {"3", "expected an object"},
        {"{\"a\":1,\"a\":2}", "duplicate"},
        {"{\"a\":{\"b\":1,\"b\":1}}", "duplicate"},
        {"{\n\"a\": 1e400}", "line 2, column"},
        {"{\"a\":12345678901234567890123}", "too big integer"},
        {"{\"a\":\"\\ud800\"}", "line 1"},
        {"{\"a\":\"\\udc00x\"}", "line 1"},
        {"{\"a\\u0000\":1}", "line 1"},
        {"{\"a\":\"\\u0000\"}", "\\u0000"},
        {"{\"a\":\"\xff\"}", "unable to decode byte 0xff"},
        {"{\"a\":\"\xc0\x80\"}", "unable to decode byte 0xc0"},
        {"{\"a\":\"\xed\xa0\x80\"}", "unable to decode byte 0xed"},
        {"\xef\xbb\xbf{}", "byte order mark"},
        {"{} x", "end of file expected"},
        {"{}\n\n  {}", "line 3, column"},
        {"{\"a\":1,}", "line 1"},
        {"{\"a\":01}", "line 1"},
        {"{\"a\":NaN}", "line 1"},
        {"{'a':1}", "line 1"},
        {"{\"a\":1", "line 1"},
        {"{\"a\":\"\t\"}", "control character"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        json_t *document;
        assert_refused(parse(cases[i].text, &document), QL_FORMAT, cases[i].words);
        assert_memory_equal(ql_last_error(), "a.json: line ", 13);
        assert_null(document);
    }
    json_t *document;
    assert_refused(ql_json_parse("a.json", "{}\0", 3, &document), QL_FORMAT, "line 1");
}

/* `depth` objects inside each other. */
static ql_status parse_nested(size_t depth) {
    char *text = malloc(depth * 6 + 1), *at = text;
    for (size_t i = 0; i < depth; i++) at = stpcpy(at, i + 1 < depth ? "{\"a\":" : "{");
    memset(at, '}', depth);
    json_t *document;
    ql_status status = ql_json_parse("a.json", text, (size_t)(at - text) + depth, &document);
    json_decref(document);
    free(text);
    return status;
}

static void json_depth_limit_is_64(void **state) {
    (void)state;
    assert_ok(parse_nested(64));
    assert_refused(parse_nested(65), QL_FORMAT, "line 1, column 321: nested deeper than 64");
    assert_refused(parse_nested(100000), QL_FORMAT, "nested deeper");
    json_decref(good("{\"a\":\"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\"}"));
}

static void json_getters_check_type_and_bounds(void **state) {
    (void)state;
    json_t *o = good("{\"i\":3,\"r\":2.5,\"b\":true,\"s\":\"x\",\"n\":null,\"big\":9223372036854775807}");
    int64_t i = -1;
    double r = -1;
    bool b = false;
    const char *s = NULL;
    assert_ok(ql_json_int(o, "p", "i", 3, 3, &i));
    assert_int_equal(i, 3);
    assert_ok(ql_json_int(o, "p", "big", 0, INT64_MAX, &i));
    assert_true(i == INT64_MAX);
    assert_ok(ql_json_real(o, "p", "r", 0, 3, &r));
    assert_true(r == 2.5);
    assert_ok(ql_json_real(o, "p", "i", 0, 3, &r)); /* whole numbers are reals */
    assert_true(r == 3.0);
    assert_ok(ql_json_bool(o, "p", "b", &b));
    assert_true(b);
    assert_ok(ql_json_string(o, "p", "s", &s));
    assert_string_equal(s, "x");
    assert_refused(ql_json_int(o, "p", "i", 4, 9, &i), QL_FORMAT, "p: \"i\" is 3, expected 4 to 9");
    assert_refused(ql_json_int(o, "p", "r", 0, 9, &i), QL_FORMAT, "\"r\" is a real number, expected an integer");
    assert_refused(ql_json_int(o, "p", "gone", 0, 9, &i), QL_FORMAT, "\"gone\" is missing");
    assert_refused(ql_json_int(o, "p", "n", 0, 9, &i), QL_FORMAT, "\"n\" is null");
    assert_refused(ql_json_real(o, "p", "r", 3, 9, &r), QL_FORMAT, "\"r\" is 2.5, expected 3 to 9");
    assert_refused(ql_json_real(o, "p", "s", 3, 9, &r), QL_FORMAT, "a string");
    assert_refused(ql_json_bool(o, "p", "i", &b), QL_FORMAT, "true or false");
    assert_refused(ql_json_string(o, "p", "b", &s), QL_FORMAT, "a boolean, expected a string");
    i = 7;
    assert_ok(ql_json_int_or(o, "p", "gone", 0, 9, &i));
    assert_ok(ql_json_int_or(o, "p", "n", 0, 9, &i));
    assert_int_equal(i, 7);
    assert_refused(ql_json_int_or(o, "p", "s", 0, 9, &i), QL_FORMAT, "a string");
    json_decref(o);
}

static void json_unknown_key_gets_a_suggestion(void **state) {
    (void)state;
    static const char *const known[] = {"bits", "group_size", "act_order", NULL};
    json_t *o = good("{\"bits\":4,\"group_szie\":1}"), *far = good("{\"wombat\":1}"), *fine = good("{\"act_order\":1}");
    assert_refused(ql_json_only_keys(o, "p", known), QL_FORMAT, "\"group_szie\"; did you mean \"group_size\"?");
    assert_refused(ql_json_only_keys(far, "p", known), QL_FORMAT, "unknown key \"wombat\"");
    assert_null(strstr(ql_last_error(), "mean"));
    assert_ok(ql_json_only_keys(fine, "p", known));
    json_decref(o);
    json_decref(far);
    json_decref(fine);
}

static void nearest_word_counts_edits(void **state) {
    (void)state;
    static const char *const words[] = {"quantize", "calibrate", "eval", NULL};
    assert_string_equal(ql_nearest_word("quantise", words), "quantize");
    assert_string_equal(ql_nearest_word("evla", words), "eval"); /* two edits of four letters */
    assert_string_equal(ql_nearest_word("val", words), "eval");
    assert_null(ql_nearest_word("xyz", words));
    assert_null(ql_nearest_word("", (const char *const[]){"eval", NULL}));
    char longest[300];
    memset(longest, 'a', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    assert_null(ql_nearest_word(longest, words));
}

static void canonical_text_sorts_keys(void **state) {
    (void)state;
    ql_arena *arena;
    assert_ok(ql_arena_open(NULL, &arena));
    json_t *o = good("{ \"b\": [1, 2.5, null], \"a\": {\"z\": \"\\u00e9\", \"y\": false} }");
    char *text;
    assert_ok(ql_json_canonical(o, arena, &text));
    assert_string_equal(text, "{\"a\":{\"y\":false,\"z\":\"\xc3\xa9\"},\"b\":[1,2.5,null]}");
    json_decref(o);
    ql_arena_close(arena);
}

static void saved_file_is_indented_and_loads_again(void **state) {
    (void)state;
    char dir[MAKE_PATH], path[MAKE_PATH + 16], bytes[64] = "";
    make_dir(dir);
    snprintf(path, sizeof path, "%s/a.json", dir);
    json_t *o = good("{\"b\":[1],\"a\":{}}"), *again;
    assert_ok(ql_json_save(o, path));
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(bytes, 1, sizeof bytes - 1, file), 34);
    fclose(file);
    assert_string_equal(bytes, "{\n  \"b\": [\n    1\n  ],\n  \"a\": {}\n}\n");
    assert_ok(ql_json_load(path, 64, &again));
    assert_true(json_equal(o, again));
    json_decref(again);
    assert_refused(ql_json_load(path, 10, &again), QL_FORMAT, "at most 10");
    assert_null(again);
    json_decref(o);
    assert_ok(ql_dir_remove(dir));
}

/* ---- the scanner ------------------------------------------------------------------------------------------------------- */

static ql_status scan_one(const char *text, char out[128]) {
    char copy[128];
    snprintf(copy, sizeof copy, "%s", text);
    json_scan scan = {"p", copy, copy, copy + strlen(copy)};
    char *string;
    QL_TRY(scan_string(&scan, &string));
    strcpy(out, string);
    return scan_end(&scan);
}

/* jansson is the other opinion on every string. */
static void scanned_strings_agree_with_jansson(void **state) {
    (void)state;
    static const char *const texts[] = {
        "\"\"",
        "\"abc\"",
        " \"a\\\"\\\\\\/\\b\\f\\n\\r\\t\" ",
        "\"\\u0041\\u00e9\\u20ac\"",
        "\"\\ud83d\\ude00\"",
        "\"\\uDBFF\\uDFFF\"",
        "\"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\"",
        "\"\xef\xbf\xbf\x7f\"",
        "\"\\ud83d\"",
        "\"\\ude00\"",
        "\"\\ud83dx\"",
        "\"\\ud83d\\u0041\"",
        "\"\\u0000\"",
        "\"\\u12\"",
        "\"\\x41\"",
        "\"\n\"",
        "\"a",
        "\"a\\",
        "\"a\\u",
        "\"\xc3\"",
        "\"\xff\"",
        "\"\xc1\xbf\"",
        "\"\xe0\x9f\xbf\"",
        "\"\xf0\x8f\xbf\xbf\"",
        "\"\xf4\x90\x80\x80\"",
        "\"\xed\xbf\xbf\"",
        "\"\xe2\x82\"",
        "abc",
        "",
        "\"a\"\"b\"",
    };
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        json_t *value = json_loads(texts[i], JSON_DECODE_ANY, NULL);
        char out[128] = "";
        ql_status status = scan_one(texts[i], out);
        if ((status == QL_OK) != (value != NULL)) fail_msg("%s: jansson disagrees", texts[i]);
        if (value) assert_string_equal(out, json_string_value(value));
        json_decref(value);
    }
}

static ql_status scan_number(const char *text, uint64_t *value) {
    char copy[64];
    snprintf(copy, sizeof copy, "%s", text);
    json_scan scan = {"p", copy, copy, copy + strlen(copy)};
    QL_TRY(scan_uint(&scan, value));
    return scan_end(&scan);
}

static void scanned_numbers_stop_at_64_bits(void **state) {
    (void)state;
    uint64_t value;
    assert_ok(scan_number("18446744073709551615", &value));
    assert_true(value == UINT64_MAX);
    assert_ok(scan_number(" 0 ", &value));
    assert_true(value == 0);
    static const char *const bad[] = {"18446744073709551616",
                                      "99999999999999999999999",
                                      "-1",
                                      "-0",
                                      "1.0",
                                      "1e3",
                                      "1E0",
                                      "01",
                                      "00",
                                      "",
                                      "x",
                                      "\"1\"",
                                      "0x10",
                                      "+1"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_refused(scan_number(bad[i], &value), QL_FORMAT, "p, byte");
}

#ifdef QL_FAULTS
static void json_survives_every_failed_allocation(void **state) {
    (void)state;
    static const char text[] = "{\"a\":[1,2.5,{\"b\":\"\\u00e9\"}],\"c\":{\"d\":null}}";
    static const char *const settings[] = {"malloc:%ld:once", "malloc:%ld:always"};
    for (int s = 0; s < 2; s++) {
        ql_status status = QL_NOMEM;
        for (long n = 1; status != QL_OK; n++) {
            char setting[64];
            snprintf(setting, sizeof setting, settings[s], n);
            ql_fault_set(setting);
            json_t *document;
            status = parse(text, &document);
            ql_fault_set(NULL);
            json_decref(document);
            if (status != QL_OK) assert_int_equal(status, QL_NOMEM);
            assert_true(n < 1000);
        }
    }
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_refuses_what_is_not_strict),
        cmocka_unit_test(json_depth_limit_is_64),
        cmocka_unit_test(json_getters_check_type_and_bounds),
        cmocka_unit_test(json_unknown_key_gets_a_suggestion),
        cmocka_unit_test(nearest_word_counts_edits),
        cmocka_unit_test(canonical_text_sorts_keys),
        cmocka_unit_test(saved_file_is_indented_and_loads_again),
        cmocka_unit_test(scanned_strings_agree_with_jansson),
        cmocka_unit_test(scanned_numbers_stop_at_64_bits),
#ifdef QL_FAULTS
        cmocka_unit_test(json_survives_every_failed_allocation),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
