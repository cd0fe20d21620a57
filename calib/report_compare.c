/* Several runs side by side. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "calib/report_parts.h"
#include "formats/json.h"

/* ---- figures ------------------------------------------------------------------------------------------------------------------------- */

static double bits(const report_run *run) { return report_number(run->report, "bits_per_weight"); }
static bool has_kld(const report_run *run) { return run->eval && report_has(run->eval, "kld_mean"); }
static double kld(const report_run *run) { return report_number(run->eval, "kld_mean"); }

/* No other run is as small and as near to the original, and better in one of both. */
static bool is_best(const report_run *runs, int count, int own) {
    if (!has_kld(&runs[own])) return false;
    for (int i = 0; i < count; i++) {
        if (!has_kld(&runs[i])) continue;
        double db = bits(&runs[i]) - bits(&runs[own]), dk = kld(&runs[i]) - kld(&runs[own]);
        if (db <= 0 && dk <= 0 && (db < 0 || dk < 0)) return false;
    }
    return true;
}

/* KL divergences of different tokens say nothing about each other. */
static bool same_tokens(const report_run *runs, int count) {
    const char *first = NULL;
    for (int i = 0; i < count; i++) {
        if (!has_kld(&runs[i])) continue;
        const char *tokens = report_text(runs[i].eval, "tokens_sha256");
        if (first && strcmp(first, tokens) != 0) return false;
        first = tokens;
    }
    return true;
}

static void take(json_t *to, const char *key, const json_t *from) {
    json_t *value = json_object_get(from, key);
    json_object_set(to, key, value ? value : json_null());
}

static json_t *figures_of(const report_run *runs, int count, int i) {
    static const char *const of_report[] = {"model",   "job",          "format",          "statistics",
                                            "forward", "output_bytes", "bits_per_weight", "bits_per_quantized_weight"};
    static const char *const of_totals[] = {"fallbacks", "mean_relative_error", "loss_over_rtn"};
    static const char *const of_environment[] = {"seconds", "peak_host_bytes", "peak_device_bytes"};
    static const char *const of_eval[] = {"perplexity", "base_perplexity", "kld_mean", "top1_agreement",
                                          "tokens_sha256"};
    const json_t *report = runs[i].report;
    json_t *one =
        json_pack("{s:s, s:b}", "name", report_run_name(&runs[i]), "best_of_its_size", is_best(runs, count, i));
    for (size_t k = 0; k < sizeof of_report / sizeof *of_report; k++) take(one, of_report[k], report);
    for (size_t k = 0; k < sizeof of_totals / sizeof *of_totals; k++)
        take(one, of_totals[k], json_object_get(report, "totals"));
    for (size_t k = 0; k < sizeof of_environment / sizeof *of_environment; k++)
        take(one, of_environment[k], json_object_get(report, "environment"));
    for (size_t k = 0; k < sizeof of_eval / sizeof *of_eval; k++) take(one, of_eval[k], runs[i].eval);
    return one;
}

json_t *report_figures(const report_run *runs, int count) {
    json_t *list = json_array();
    int failed = !list;
    for (int i = 0; i < count; i++) failed |= json_array_append_new(list, figures_of(runs, count, i));
    if (!failed) return json_pack("{s:b, s:o}", "same_tokens", same_tokens(runs, count), "runs", list);
    json_decref(list);
    return NULL;
}

/* ---- bits against divergence --------------------------------------------------------------------------------------------------------- */

typedef struct point {
    double bits, kld;
} point;

static int by_bits(const void *a, const void *b) {
    const point *x = a, *y = b;
    return x->bits < y->bits ? -1 : x->bits > y->bits ? 1 : x->kld < y->kld ? -1 : x->kld > y->kld;
}

/* Each run as a series of one dot, and behind them the stair of the best. */
static ql_status draw_bits(FILE *out, const report_sheet *sheet) {
    chart_series *series;
    point *best;
    double *x, *y;
    int n_best = 0;
    size_t room = (size_t)sheet->count + 1;
    QL_TRY(ql_take(sheet->arena, room, sizeof *series, &series));
    QL_TRY(ql_take(sheet->arena, room, sizeof *best, &best));
    QL_TRY(ql_take(sheet->arena, 2 * room, sizeof *x, &x));
    QL_TRY(ql_take(sheet->arena, 2 * room, sizeof *y, &y));
    for (int i = 0; i < sheet->count; i++) {
        const report_run *run = &sheet->runs[i];
        x[i] = bits(run);
        y[i] = has_kld(run) ? kld(run) : NAN;
        series[i] = (chart_series){report_run_name(run), 1, &x[i], &y[i], CHART_DOTS};
        if (is_best(sheet->runs, sheet->count, i)) best[n_best++] = (point){x[i], y[i]};
    }
    qsort(best, (size_t)n_best, sizeof *best, by_bits);
    for (int i = 0; i < n_best; i++) x[room + (size_t)i] = best[i].bits, y[room + (size_t)i] = best[i].kld;
    series[sheet->count] = (chart_series){"best of their size", n_best, x + room, y + room, CHART_STEPS};
    const chart c = {
        .title = "Bits per weight against KL divergence",
        .description =
            "One mark for each run that was evaluated; to the left is smaller, below is nearer to the original. "
            "The stair joins those that no other run beats in both. The table above has the numbers.",
        .x_title = "bits per weight, all tensors",
        .y_title = "mean KL divergence, nats",
        .log_y = true,
        .named = true,
        .count = sheet->count + 1,
        .series = series,
    };
    if (!chart_draw(out, &c))
        markup(out,
               "<p>No run comes with a KL divergence: <code>qalib eval -m OUT --tokens eval.h5 --base MODEL --json "
               "&gt;OUT.json</code>, then <code>qalib report OUT OUT.json</code>.</p>\n");
    else if (!same_tokens(sheet->runs, sheet->count))
        markup(out,
               "<p class=\"bad\">The runs were evaluated on different tokens: their numbers do not compare.</p>\n");
    return QL_OK;
}

static void write_table(FILE *out, const report_sheet *sheet) {
    char text[32];
    markup(out,
           "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Runs\">\n<table><caption>Runs; best: no "
           "other is "
           "as small and as near to the original</caption><thead><tr><th scope=\"col\">Run</th><th "
           "scope=\"col\">Format</th>"
           "<th scope=\"col\" class=\"number\">Bits</th><th scope=\"col\" class=\"number\">quantized</th>"
           "<th scope=\"col\" class=\"number\">Size</th><th scope=\"col\" class=\"number\">Perplexity</th>"
           "<th scope=\"col\" class=\"number\">Mean KL</th><th scope=\"col\">Best</th>"
           "<th scope=\"col\" class=\"number\">Error</th><th scope=\"col\" class=\"number\">Fallbacks</th>"
           "<th scope=\"col\" class=\"number\">Time</th><th scope=\"col\" "
           "class=\"number\">Memory</th></tr></thead><tbody>\n");
    for (int i = 0; i < sheet->count; i++) {
        const report_run *run = &sheet->runs[i];
        const json_t *totals = json_object_get(run->report, "totals"), *e = json_object_get(run->report, "environment");
        markup(out, "<tr><th scope=\"row\">%s</th><td>%s</td>", report_run_name(run),
               report_text(run->report, "format"));
        report_cell(out, run->report, "bits_per_weight", "%.3f");
        report_cell(out, run->report, "bits_per_quantized_weight", "%.3f");
        markup(out, "<td class=\"number\">%s</td>", report_bytes(report_number(run->report, "output_bytes"), text));
        report_cell(out, run->eval, "perplexity", "%.4f");
        report_cell(out, run->eval, "kld_mean", "%.5f");
        markup(out, "<td>%s</td>", is_best(sheet->runs, sheet->count, i) ? "best" : "");
        report_cell(out, totals, "mean_relative_error", "%.3e");
        report_cell(out, totals, "fallbacks", "%.0f");
        markup(out, "<td class=\"number\">%s</td>", report_seconds(report_number(e, "seconds"), text));
        markup(out, "<td class=\"number\">%s</td></tr>\n", report_bytes(report_number(e, "peak_host_bytes"), text));
    }
    markup(out, "</tbody></table></div>\n");
}

/* ---- error by layer ------------------------------------------------------------------------------------------------------------------- */

static double mean_error(const json_t *layer) {
    double sum = 0, count = 0;
    size_t m;
    json_t *module;
    json_array_foreach(layer, m, module) if (report_has(module, "relative_error")) sum +=
        report_number(module, "relative_error"),
        count++;
    return count > 0 ? sum / count : NAN;
}

static ql_status draw_errors(FILE *out, const report_sheet *sheet) {
    chart_series *series;
    QL_TRY(ql_take(sheet->arena, (size_t)sheet->count, sizeof *series, &series));
    for (int i = 0; i < sheet->count; i++) {
        const json_t *layers = json_object_get(sheet->runs[i].report, "layers");
        double *x, *y;
        size_t l;
        json_t *layer;
        QL_TRY(ql_take(sheet->arena, json_array_size(layers) + 1, sizeof *x, &x));
        QL_TRY(ql_take(sheet->arena, json_array_size(layers) + 1, sizeof *y, &y));
        json_array_foreach(layers, l, layer) x[l] = (double)l, y[l] = mean_error(layer);
        series[i] = (chart_series){report_run_name(&sheet->runs[i]), (int)json_array_size(layers), x, y, CHART_LINE};
    }
    markup(out, "<h2 id=\"error\">Error by layer</h2>\n");
    const chart c = {
        .title = "Mean relative error by layer",
        .description = "One line for each run over the layers of its model; the mean over the modules of a layer.",
        .x_title = "layer",
        .y_title = "mean relative error",
        .log_y = true,
        .whole_x = true,
        .count = sheet->count,
        .series = series,
    };
    if (!chart_draw(out, &c))
        markup(out, "<p>No module has an error: nothing was quantized, or nothing was lost.</p>\n");
    return QL_OK;
}

/* ---- recipes --------------------------------------------------------------------------------------------------------------------------- */

static const json_t *recipe_of(const report_run *run) { return json_object_get(run->report, "recipe"); }

static bool differs(const report_sheet *sheet, const char *key) {
    const json_t *first = json_object_get(recipe_of(&sheet->runs[0]), key);
    for (int i = 1; i < sheet->count; i++) {
        const json_t *other = json_object_get(recipe_of(&sheet->runs[i]), key);
        if (first != other && !json_equal(first, other)) return true;
    }
    return false;
}

/* Keys of all recipes in the order in which they come. */
static json_t *all_keys(const report_sheet *sheet) {
    json_t *keys = json_object(), *value;
    const char *key;
    for (int i = 0; keys && i < sheet->count; i++)
        json_object_foreach((json_t *)(uintptr_t)recipe_of(&sheet->runs[i]), key, value)
            json_object_set_new(keys, key, json_true());
    return keys;
}

static ql_status write_setting(FILE *out, const report_sheet *sheet, const char *key) {
    markup(out, "<tr><th scope=\"row\">%s</th>", key);
    for (int i = 0; i < sheet->count; i++) {
        const json_t *value = json_object_get(recipe_of(&sheet->runs[i]), key);
        char *text = NULL;
        if (value && !json_is_string(value))
            QL_TRY(ql_json_text(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6), &text));
        markup(out, "<td>%s</td>", text ? text : value ? json_string_value(value) : "");
        ql_mfree(text);
    }
    markup(out, "</tr>\n");
    return QL_OK;
}

static ql_status write_recipes(FILE *out, const report_sheet *sheet) {
    json_t *keys = all_keys(sheet), *value;
    const char *key;
    ql_status status = keys ? QL_OK : ql_fail(QL_NOMEM, "no memory for the recipes");
    markup(out, "<h2 id=\"recipes\">Recipes</h2>\n<div class=\"scroll\" tabindex=\"0\" role=\"region\" "
                "aria-label=\"Recipes\">\n"
                "<table><caption>Settings that differ</caption><thead><tr><th scope=\"col\">Setting</th>");
    for (int i = 0; i < sheet->count; i++) markup(out, "<th scope=\"col\">%s</th>", report_run_name(&sheet->runs[i]));
    markup(out, "</tr></thead><tbody>\n");
    json_object_foreach(keys, key, value) if (status == QL_OK && differs(sheet, key)) status =
        write_setting(out, sheet, key);
    markup(out, "</tbody></table></div>\n");
    json_decref(keys);
    return status;
}

ql_status report_write_comparison(FILE *out, const report_sheet *sheet) {
    markup(out, "<header><h1>%d runs, compared</h1></header>\n<main>\n<h2 id=\"runs\">Runs</h2>\n", sheet->count);
    write_table(out, sheet);
    markup(out, "<h2 id=\"bits\">Size against quality</h2>\n");
    QL_TRY(draw_bits(out, sheet));
    QL_TRY(draw_errors(out, sheet));
    QL_TRY(write_recipes(out, sheet));
    markup(out, "</main>\n");
    return QL_OK;
}
