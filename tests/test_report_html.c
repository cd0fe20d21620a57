/* The page: what is data stays text, numbers are shown, and what is not a report is refused by name. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/chart.h"
#include "calib/markup.h"
#include "calib/report_html.h"
#include "calib/report_read.h"
#include "formats/json.h"
#include "host/file.h"
#include "tests/test.h"

static const char sample[] = "tests/fuzz/corpus/report/gptq.json";
static ql_arena *arena;

static int open_all(void **state) {
    (void)state;
    return ql_arena_open(NULL, &arena) != QL_OK;
}

static int close_all(void **state) {
    (void)state;
    ql_arena_close(arena);
    return 0;
}

static json_t *load_sample(void) {
    json_t *report;
    assert_ok(report_load(sample, &report));
    assert_ok(report_check(report, sample));
    return report;
}

/* ---- markup ---------------------------------------------------------------------------------------------------------------------------- */

static void check_escape(const char *text, const char *expected) {
    char *got = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&got, &size);
    assert_non_null(out);
    markup(out, "%s", text);
    assert_int_equal(fclose(out), 0);
    assert_string_equal(got, expected);
    free(got);
}

static void strings_are_escaped(void **state) {
    (void)state;
    check_escape("plain \xc3\xa9\xe6\xa8\xa1\xf0\x9f\x98\x80", "plain \xc3\xa9\xe6\xa8\xa1\xf0\x9f\x98\x80");
    check_escape("<script>&\"'", "&lt;script&gt;&amp;&quot;&#39;");
    check_escape("\x01\n\x1b\x7f", "\xe2\x90\x81\xe2\x90\x8a\xe2\x90\x9b\xe2\x90\xa1"); /* U+2401, 240A, 241B, 2421 */
    check_escape("\xc2\x85|\xc2\xa0", "\xef\xbf\xbd|\xc2\xa0"); /* NEL goes, a fixed space stays */
    check_escape("\xe2\x80\xae|\xe2\x81\xa6|\xe2\x80\x94",
                 "\xef\xbf\xbd|\xef\xbf\xbd|\xe2\x80\x94"); /* directions, not a dash */
    check_escape("\xef\xbf\xbe|\xef\xbf\xbd", "\xef\xbf\xbd|\xef\xbf\xbd");
}

static void formats_of_numbers_are_those_of_printf(void **state) {
    (void)state;
    char *got = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&got, &size);
    assert_non_null(out);
    markup(out, "<b>%d %5.2f%% %.3e %g</b>", -7, 3.14159, 0.00012345, 0.05);
    assert_int_equal(fclose(out), 0);
    assert_string_equal(got, "<b>-7  3.14% 1.234e-04 0.05</b>");
    free(got);
}

/* ---- charts ------------------------------------------------------------------------------------------------------------------------------ */

/* In the arena: gcc takes a buffer of open_memstream for a dangling one. */
static char *draw(const chart *c, bool *drawn) {
    char *got = NULL, *copy;
    size_t size = 0;
    FILE *out = open_memstream(&got, &size);
    assert_non_null(out);
    *drawn = chart_draw(out, c);
    assert_int_equal(fclose(out), 0);
    assert_ok(ql_arena_string(arena, got, &copy));
    free(got);
    return copy;
}

static size_t count_of(const char *text, const char *word) {
    size_t count = 0;
    for (; (text = strstr(text, word)); text += strlen(word)) count++;
    return count;
}

/* A line breaks where a value is missing; ticks of a logarithmic axis are powers of ten; extremes end. */
static void charts_hold_what_is_there(void **state) {
    (void)state;
    const double x[] = {0, 1, 2, 3, 4}, y[] = {1e-4, 1e-2, 0, 1e-3, 1e-1}, none[] = {0, NAN, -1, INFINITY, 0};
    const double huge[] = {1e30, -1e30, 1, 2, 3}, same[] = {7, 7, 7, 7, 7};
    chart_series series = {"<q>", 5, x, y, CHART_LINE};
    chart c = {"t", "d", "x", "y", .log_y = true, .whole_x = true, .count = 1, .series = &series};
    bool drawn;
    char *text = draw(&c, &drawn);
    assert_true(drawn);
    assert_int_equal(count_of(text, "<circle"), 5); /* four values, and the legend */
    assert_int_equal(count_of(text, ">0.001</text>") + count_of(text, ">0.01</text>"), 2);
    assert_int_equal(count_of(text, ">&lt;q&gt;</text>"), 1);
    const char *line = strstr(text, "class=\"line\" d=\"");
    assert_non_null(line);
    char *end = strchr(line + 16, '"');
    *end = 0;
    assert_int_equal(count_of(line, "M"), 2);
    series.y = none;
    draw(&c, &drawn);
    assert_false(drawn);
    c.log_y = c.whole_x = false;
    for (int i = 0; i < 4; i++) {
        series.x = i & 1 ? huge : same;
        series.y = i & 2 ? huge : same;
        draw(&c, &drawn);
        assert_true(drawn);
    }
}

/* ---- pages ------------------------------------------------------------------------------------------------------------------------------- */

static void page_shows_the_numbers(void **state) {
    (void)state;
    char *text, *again;
    json_t *report = load_sample();
    const report_run run = {.report = report};
    assert_ok(report_html(&run, 1, arena, &text));
    static const char *const shown[] = {"model.layers.0.self_attn.q_proj",
                                        "4.250",
                                        "1.234e-02",
                                        "no calibration data",
                                        "vllm serve .",
                                        "12.5",
                                        "act_order",
                                        "2.0 MiB",
                                        "1 h 10 min",
                                        "static",
                                        "loss above"};
    for (size_t i = 0; i < sizeof shown / sizeof *shown; i++)
        if (!strstr(text, shown[i])) fail_msg("the page does not show \"%s\"", shown[i]);
    assert_null(strstr(text, "http://"));
    assert_null(strstr(text, "https://"));
    assert_null(strstr(text, "<script"));
    assert_ok(report_html(&run, 1, arena, &again));
    assert_string_equal(text, again);
    json_decref(report);
}

/* Bits and divergences of four runs; which are best follows from the definition. */
static void comparison_finds_the_best(void **state) {
    (void)state;
    static const double bits[] = {4, 3, 4, 8}, kld[] = {0.01, 0.05, 0.02, 0.01};
    static const bool best[] = {true, true, false, false};
    report_run run[4];
    json_t *report[4], *eval[4], *figures;
    char *text;
    for (int i = 0; i < 4; i++) {
        report[i] = load_sample();
        json_object_set_new(report[i], "bits_per_weight", json_real(bits[i]));
        eval[i] = json_pack("{s:s, s:f, s:s, s:i, s:f}", "model", "m", "perplexity", 50.0, "tokens_sha256",
                            i < 3 ? "aa" : "bb", "n_tokens", 10, "kld_mean", kld[i]);
        assert_ok(report_check_eval(eval[i], "eval"));
        run[i] = (report_run){"run", report[i], eval[i]};
    }
    assert_non_null((figures = report_figures(run, 4)));
    for (int i = 0; i < 4; i++) {
        const json_t *one = json_array_get(json_object_get(figures, "runs"), (size_t)i);
        assert_int_equal(json_is_true(json_object_get(one, "best_of_its_size")), best[i]);
    }
    assert_true(json_is_false(json_object_get(figures, "same_tokens")));
    assert_ok(report_html(run, 4, arena, &text));
    assert_int_equal(count_of(text, "<td>best</td>"), 2);
    assert_non_null(strstr(text, "evaluated on different tokens"));
    json_decref(figures);
    for (int i = 0; i < 4; i++) json_decref(report[i]), json_decref(eval[i]);
}

/* ---- what is no report ------------------------------------------------------------------------------------------------------------------ */

/* The value at "a/b/0/c" becomes `value`, or goes. */
static void spoil(json_t *report, const char *path, json_t *value) {
    char copy[96], *rest, *key;
    json_t *at = report;
    snprintf(copy, sizeof copy, "%s", path);
    key = strtok_r(copy, "/", &rest);
    for (char *next; (next = strtok_r(NULL, "/", &rest)); key = next)
        at = json_is_array(at) ? json_array_get(at, strtoul(key, NULL, 10)) : json_object_get(at, key);
    assert_non_null(at);
    if (json_is_array(at)) assert_int_equal(json_array_set_new(at, strtoul(key, NULL, 10), value), 0);
    else if (value) assert_int_equal(json_object_set_new(at, key, value), 0);
    else assert_int_equal(json_object_del(at, key), 0);
}

static void spoiled_reports_are_refused(void **state) {
    (void)state;
    const struct {
        const char *path;
        json_t *value;
        const char *words;
    } cases[] = {
        {"version", json_integer(2), "version 2 of the report, this Qalib reads version 1"},
        {"version", NULL, "\"version\" is missing"},
        {"model", json_integer(1), "\"model\" is an integer, expected a string"},
        {"bits_per_weight", json_string("4"), "\"bits_per_weight\" is a string, expected a number"},
        {"samples", json_integer(-1), "\"samples\" is -1"},
        {"layers", json_object(), "\"layers\" is an object, expected an array"},
        {"layers/1", json_null(), "\"layers\"[1] is null, expected an array"},
        {"layers/0/0/name", json_null(), "\"layers\"[0][0]: module: \"name\" is null"},
        {"layers/0/1/relative_error", json_real(1e31), "\"layers\"[0][1]: module: \"relative_error\" is 1e+31"},
        {"layers/0/0/bits", json_integer(65), "\"bits\" is 65"},
        {"layers/0/0/method", json_true(), "\"method\" is a boolean"},
        {"totals", NULL, "\"totals\": is missing, expected an object"},
        {"recipe", json_array(), "\"recipe\": is an array, expected an object"},
        {"recipe/bits", json_string("4"), "\"recipe\": \"bits\" is a string"},
        {"environment/phases/1/seconds", json_null(), "\"phases\"[1]: phase: \"seconds\" is null"},
        {"environment/threads", NULL, "\"threads\" is missing"},
        {"kept_in_16_bits/0", json_integer(1), "\"kept_in_16_bits\"[0] is an integer"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *report = load_sample();
        spoil(report, cases[i].path, cases[i].value);
        assert_refused(report_check(report, "place"), QL_FORMAT, cases[i].words);
        json_decref(report);
    }
    json_t *report = load_sample(), *layers = json_object_get(report, "layers");
    for (int i = 0; i < 10000; i++) json_array_append_new(layers, json_array());
    assert_refused(report_check(report, "place"), QL_FORMAT, "layers, at most 10000");
    json_decref(report);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings_are_escaped),       cmocka_unit_test(formats_of_numbers_are_those_of_printf),
        cmocka_unit_test(charts_hold_what_is_there), cmocka_unit_test(page_shows_the_numbers),
        cmocka_unit_test(comparison_finds_the_best), cmocka_unit_test(spoiled_reports_are_refused),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
