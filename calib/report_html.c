#include "calib/report_html.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "calib/loading.h"
#include "calib/report_parts.h"
#include "formats/json.h"

enum { MOST_ROWS = 1000, MOST_OUTLIERS = 20 };

/* ---- words and numbers ---------------------------------------------------------------------------------------------------------------- */

const char *report_run_name(const report_run *run) {
    const char *model = report_text(run->report, "model"), *slash = strrchr(model, '/');
    if (run->name) return run->name;
    return slash && slash[1] ? slash + 1 : model;
}

const char *report_bytes(double bytes, char text[32]) {
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    while (bytes >= 1024 && unit < 4) bytes /= 1024, unit++;
    snprintf(text, 32, unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
    return text;
}

const char *report_seconds(double seconds, char text[32]) {
    if (seconds < 120) snprintf(text, 32, "%.1f s", seconds);
    else if (seconds < 3600) snprintf(text, 32, "%.0f min", seconds / 60);
    else snprintf(text, 32, "%.0f h %02.0f min", floor(seconds / 3600), floor(fmod(seconds, 3600) / 60));
    return text;
}

void report_cell(FILE *out, const json_t *object, const char *key, const char *format) {
    char text[32] = "";
    if (report_has(object, key)) snprintf(text, sizeof text, format, report_number(object, key));
    markup(out, "<td class=\"number\">%s</td>", text);
}

static void put_row(FILE *out, const char *label, const char *value) {
    markup(out, "<tr><th scope=\"row\">%s</th><td>%s</td></tr>\n", label, value);
}

/* A row whose value is made of numbers. */
static void put_figures(FILE *out, const char *label, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void put_figures(FILE *out, const char *label, const char *format, ...) {
    char text[128];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    put_row(out, label, text);
}

/* ---- modules --------------------------------------------------------------------------------------------------------------------------- */

typedef struct module_list {
    int layers, count;
    const json_t **module; /* [count], in the order of the report */
    int *layer;            /* [count] */
    const char *kind[MOST_KINDS + 1];
    int kinds; /* the last of MOST_KINDS stands for all others */
} module_list;

/* "model.layers.3.mlp.up_proj": "up_proj" */
static const char *last_name(const json_t *module) {
    const char *name = report_text(module, "name"), *dot = strrchr(name, '.');
    return dot && dot[1] ? dot + 1 : name;
}

static int kind_of(const module_list *list, const json_t *module) {
    int kind = 0;
    while (kind < list->kinds && strcmp(list->kind[kind], last_name(module)) != 0) kind++;
    return kind < MOST_KINDS ? kind : MOST_KINDS - 1;
}

static ql_status list_modules(const json_t *report, ql_arena *arena, module_list *list) {
    const json_t *layers = json_object_get(report, "layers");
    size_t l, m, total = 0;
    json_t *layer, *module;
    json_array_foreach(layers, l, layer) total += json_array_size(layer);
    *list = (module_list){.layers = (int)json_array_size(layers)};
    QL_TRY(ql_take(arena, total + 1, sizeof *list->module, &list->module));
    QL_TRY(ql_take(arena, total + 1, sizeof *list->layer, &list->layer));
    json_array_foreach(layers, l, layer) json_array_foreach(layer, m, module) {
        int kind = kind_of(list, module);
        if (kind == list->kinds) list->kind[list->kinds++] = last_name(module);
        else if (strcmp(list->kind[kind], last_name(module)) != 0) list->kind[kind] = "others";
        list->layer[list->count] = (int)l;
        list->module[list->count++] = module;
    }
    return QL_OK;
}

/* ---- the top ----------------------------------------------------------------------------------------------------------------------------- */

static void write_quality(FILE *out, const json_t *eval) {
    if (!eval) return;
    put_figures(out, "Perplexity", "%.4f", report_number(eval, "perplexity"));
    if (report_has(eval, "base_perplexity"))
        put_figures(out, "Perplexity of the original", "%.4f", report_number(eval, "base_perplexity"));
    if (report_has(eval, "kld_mean"))
        put_figures(out, "Mean KL divergence", "%.6f nats", report_number(eval, "kld_mean"));
    if (report_has(eval, "top1_agreement"))
        put_figures(out, "Same most likely token", "%.2f %%", 100 * report_number(eval, "top1_agreement"));
}

static void write_summary(FILE *out, const json_t *report, const json_t *eval) {
    const json_t *totals = json_object_get(report, "totals"), *environment = json_object_get(report, "environment");
    char before[32], after[32];
    markup(out, "<h2 id=\"summary\">Summary</h2>\n<table><caption>The whole job</caption><tbody>\n");
    put_row(out, "Model", report_text(report, "model"));
    put_row(out, "Format", report_text(report, "format"));
    put_figures(out, "Bits per quantized weight", "%.3f", report_number(report, "bits_per_quantized_weight"));
    put_figures(out, "Bits per weight, all tensors", "%.3f", report_number(report, "bits_per_weight"));
    report_bytes(report_number(report, "source_bytes"), before);
    report_bytes(report_number(report, "output_bytes"), after);
    put_figures(out, "Size", "%s, before %s", after, before);
    write_quality(out, eval);
    put_figures(out, "Modules", "%.0f quantized, %.0f kept in 16 bits, %.0f fallbacks",
                report_number(totals, "modules_quantized"), report_number(totals, "modules_kept"),
                report_number(totals, "fallbacks"));
    put_figures(out, "Mean relative error", "%.3e", report_number(totals, "mean_relative_error"));
    put_figures(out, "Loss, of nearest rounding's", "%.3f", report_number(totals, "loss_over_rtn"));
    put_figures(out, "Calibration", "%.0f rows, %.0f tokens, %.0f rows skipped", report_number(report, "samples"),
                report_number(report, "tokens"), report_number(report, "samples_skipped"));
    put_row(out, "Statistics", report_text(report, "statistics"));
    if (report_has(report, "importance")) put_row(out, "Importance", report_text(report, "importance"));
    put_row(out, "Time", report_seconds(report_number(environment, "seconds"), before));
    put_row(out, "Peak memory of the process", report_bytes(report_number(environment, "peak_host_bytes"), before));
    put_row(out, "Peak memory of the device", report_bytes(report_number(environment, "peak_device_bytes"), before));
    if (report_has(report, "forward")) put_row(out, "Activations", report_text(report, "forward"));
    put_row(out, "Job", report_text(report, "job"));
    markup(out, "</tbody></table>\n");
}

/* ---- error by layer ------------------------------------------------------------------------------------------------------------------------ */

/* One value of every module as a line for each kind; kinds are blocks of [layers] in x and y. */
static ql_status draw_by_layer(FILE *out, const module_list *list, const char *key, const chart *look,
                               chart_style style, ql_arena *arena, bool *drawn) {
    chart_series series[MOST_KINDS];
    double *x, *y;
    size_t size = (size_t)list->layers * MOST_KINDS;
    chart c = *look;
    QL_TRY(ql_take(arena, size + 1, sizeof *x, &x));
    QL_TRY(ql_take(arena, size + 1, sizeof *y, &y));
    for (size_t i = 0; i < size; i++) x[i] = (double)(i % (size_t)list->layers), y[i] = NAN;
    for (int i = 0; i < list->count; i++) {
        const json_t *module = list->module[i];
        double *at = &y[kind_of(list, module) * list->layers + list->layer[i]];
        if (report_has(module, key)) *at = fmax(report_number(module, key), isnan(*at) ? -INFINITY : *at);
    }
    for (int k = 0; k < list->kinds; k++)
        series[k] = (chart_series){.name = list->kind[k],
                                   .count = list->layers,
                                   .x = x + k * list->layers,
                                   .y = y + k * list->layers,
                                   .style = style};
    c.count = list->kinds;
    c.series = series;
    *drawn = chart_draw(out, &c);
    return QL_OK;
}

static ql_status write_errors(FILE *out, const module_list *list, ql_arena *arena) {
    bool drawn;
    const chart look = {
        .title = "Relative error by layer and module",
        .description = "One line for each kind of module over the layers; the table of modules below has the numbers.",
        .x_title = "layer",
        .y_title = "relative error",
        .log_y = true,
        .whole_x = true,
    };
    markup(out,
           "<h2 id=\"error\">Error by layer</h2>\n"
           "<p class=\"faint\">The squared error of a module's output on the calibration rows over the squared output; "
           "without rows, of its weights.</p>\n");
    QL_TRY(draw_by_layer(out, list, "relative_error", &look, CHART_LINE, arena, &drawn));
    if (!drawn) markup(out, "<p>No module has an error: nothing was quantized, or nothing was lost.</p>\n");
    return QL_OK;
}

/* ---- damping and fallbacks ------------------------------------------------------------------------------------------------------------------ */

static void write_fallbacks(FILE *out, const module_list *list) {
    int found = 0;
    for (int i = 0; i < list->count; i++) {
        if (!report_has(list->module[i], "fallback")) continue;
        if (!found++)
            markup(out,
                   "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Fallbacks\">\n"
                   "<table><caption>Modules that were not made by the method asked for</caption>"
                   "<thead><tr><th scope=\"col\">Module</th><th scope=\"col\">Made by</th><th scope=\"col\">Why</th>"
                   "</tr></thead><tbody>\n");
        if (found <= MOST_ROWS)
            markup(out, "<tr><th scope=\"row\">%s</th><td>%s</td><td class=\"bad\">%s</td></tr>\n",
                   report_text(list->module[i], "name"), report_text(list->module[i], "method"),
                   report_text(list->module[i], "fallback"));
    }
    if (found) markup(out, "</tbody></table></div>\n");
    else markup(out, "<p>No fallbacks: every module was made by the method asked for.</p>\n");
    if (found > MOST_ROWS) markup(out, "<p>And %d more.</p>\n", found - MOST_ROWS);
}

static ql_status write_damping(FILE *out, const module_list *list, ql_arena *arena) {
    double least = INFINITY, most = 0;
    bool drawn;
    const chart look = {
        .title = "Damping by layer and module",
        .description = "What was added to the diagonal of each Hessian, relative to its mean.",
        .x_title = "layer",
        .y_title = "damping",
        .log_y = true,
        .whole_x = true,
    };
    for (int i = 0; i < list->count; i++) {
        double damp = report_number(list->module[i], "damp");
        if (damp > 0) least = fmin(least, damp), most = fmax(most, damp);
    }
    markup(out, "<h2 id=\"damping\">Damping and fallbacks</h2>\n");
    if (most <= 0) markup(out, "<p>No module needed damping.</p>\n");
    else if (least >= most)
        markup(out, "<p>Damping was %g of the mean of the diagonal in every module that needed any.</p>\n", most);
    else QL_TRY(draw_by_layer(out, list, "damp", &look, CHART_DOTS, arena, &drawn));
    write_fallbacks(out, list);
    return QL_OK;
}

/* ---- outliers --------------------------------------------------------------------------------------------------------------------------------- */

typedef struct ranked {
    const json_t *module;
    double value;
    int place;
} ranked;

static int by_descending_value(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->value != y->value) return x->value < y->value ? 1 : -1;
    return x->place - y->place;
}

/* q, k and v have one input, gate and up another. */
static bool same_input(const module_list *list, const ranked *a, const ranked *b) {
    return a->value == b->value && list->layer[a->place] == list->layer[b->place];
}

/* Modules with a value, the largest first. */
static ql_status rank_modules(const module_list *list, const char *key, ql_arena *arena, ranked **rank, int *count) {
    QL_TRY(ql_take(arena, (size_t)list->count + 1, sizeof **rank, rank));
    *count = 0;
    for (int i = 0; i < list->count; i++) {
        if (!report_has(list->module[i], key)) continue;
        (*rank)[*count] = (ranked){list->module[i], report_number(list->module[i], key), i};
        ++*count;
    }
    qsort(*rank, (size_t)*count, sizeof **rank, by_descending_value);
    return QL_OK;
}

static ql_status write_outliers(FILE *out, const module_list *list, ql_arena *arena) {
    ranked *rank;
    int count;
    markup(out, "<h2 id=\"outliers\">Outliers</h2>\n");
    QL_TRY(rank_modules(list, "input_outlier", arena, &rank, &count));
    if (count == 0) {
        markup(out, "<p>Not measured: no statistics of the inputs were read.</p>\n");
        return QL_OK;
    }
    markup(out, "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Outliers\">\n"
                "<table><caption>Inputs with the largest channels, called after the first module that reads them: "
                "their root mean square over that of the "
                "median channel. "
                "Smoothing (awq, smoothquant) is for those far above the others.</caption><thead><tr><th "
                "scope=\"col\">Module</th>"
                "<th scope=\"col\" class=\"number\">Largest over median</th><td></td></tr></thead><tbody>\n");
    for (int i = 0, shown = 0; i < count && shown < MOST_OUTLIERS; i++) {
        if (i > 0 && same_input(list, &rank[i], &rank[i - 1])) continue;
        shown++;
        markup(out, "<tr><th scope=\"row\">%s</th><td class=\"number\">%.1f</td><td>",
               report_text(rank[i].module, "name"), rank[i].value);
        chart_bar(out, rank[i].value / rank[0].value);
        markup(out, "</td></tr>\n");
    }
    markup(out, "</tbody></table></div>\n");
    return QL_OK;
}

/* ---- time and memory ----------------------------------------------------------------------------------------------------------------------------- */

static void write_phase(FILE *out, const json_t *phase, double total) {
    double seconds = report_number(phase, "seconds"), flops = report_number(phase, "flops");
    char text[32] = "";
    markup(out, "<tr><th scope=\"row\">%s</th><td class=\"number\">%.2f</td><td>", report_text(phase, "name"), seconds);
    chart_bar(out, total > 0 ? seconds / total : 0);
    if (flops > 0 && seconds > 0) snprintf(text, sizeof text, "%.1f", 1e-9 * flops / seconds);
    markup(out, "</td><td class=\"number\">%s</td>", text);
    double bytes = report_number(phase, "peak_bytes");
    markup(out, "<td class=\"number\">%s</td></tr>\n", bytes > 0 ? report_bytes(bytes, text) : "");
}

static void write_phases(FILE *out, const json_t *environment) {
    size_t i;
    json_t *phase;
    double longest = 0;
    const json_t *phases = json_object_get(environment, "phases");
    json_array_foreach(phases, i, phase) longest = fmax(longest, report_number(phase, "seconds"));
    markup(out, "<h2 id=\"time\">Time and memory</h2>\n"
                "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Time and memory by phase\">\n"
                "<table><caption>By phase; memory is the most that the job worked in meanwhile</caption><thead><tr>"
                "<th scope=\"col\">Phase</th><th scope=\"col\" class=\"number\">Seconds</th><td></td>"
                "<th scope=\"col\" class=\"number\">GFLOP/s</th><th scope=\"col\" "
                "class=\"number\">Memory</th></tr></thead><tbody>\n");
    json_array_foreach(phases, i, phase) if (report_number(phase, "seconds") > 0) write_phase(out, phase, longest);
    markup(out, "</tbody></table></div>\n");
}

/* ---- all modules --------------------------------------------------------------------------------------------------------------------------------- */

static void write_stored(FILE *out, const json_t *module) {
    if (!report_has(module, "method")) markup(out, "<td>16 bits</td><td></td>");
    else if (report_has(module, "stored"))
        markup(out, "<td>%s</td><td>%s</td>", report_text(module, "stored"), report_text(module, "method"));
    else
        markup(out, "<td>%.0f bits, group %.0f</td><td>%s</td>", report_number(module, "bits"),
               report_number(module, "group_size"), report_text(module, "method"));
}

static void write_module(FILE *out, const json_t *module) {
    double rtn = report_number(module, "rtn_loss");
    char ratio[32] = "";
    if (rtn > 0) snprintf(ratio, sizeof ratio, "%.3f", report_number(module, "loss") / rtn);
    markup(out, "<tr><th scope=\"row\">%s</th><td class=\"number\">%.0f &times; %.0f</td>", report_text(module, "name"),
           report_number(module, "n"), report_number(module, "k"));
    write_stored(out, module);
    report_cell(out, module, "damp", "%g");
    report_cell(out, module, "relative_error", "%.3e");
    markup(out, "<td class=\"number\">%s</td>", ratio);
    report_cell(out, module, "input_outlier", "%.1f");
    report_cell(out, module, "dead_columns", "%.0f");
    markup(out, "</tr>\n");
}

static ql_status write_modules(FILE *out, const module_list *list, ql_arena *arena) {
    ranked *worst = NULL;
    int rows = list->count;
    if (rows > MOST_ROWS) {
        QL_TRY(rank_modules(list, "relative_error", arena, &worst, &rows));
        rows = rows < MOST_ROWS ? rows : MOST_ROWS;
    }
    markup(out, "<h2 id=\"modules\">Modules</h2>\n<details><summary>%d modules%s</summary>\n", list->count,
           worst ? ", here those with the largest error" : "");
    markup(
        out,
        "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Modules\">\n<table><caption>Outputs &times; "
        "inputs; loss over that of nearest rounding; largest channel of the input over the median "
        "one</caption><thead><tr>"
        "<th scope=\"col\">Module</th><th scope=\"col\" class=\"number\">Shape</th><th scope=\"col\">Stored as</th>"
        "<th scope=\"col\">Method</th><th scope=\"col\" class=\"number\">Damping</th>"
        "<th scope=\"col\" class=\"number\">Relative error</th><th scope=\"col\" class=\"number\">Of nearest</th>"
        "<th scope=\"col\" class=\"number\">Outlier</th><th scope=\"col\" class=\"number\">Dead "
        "columns</th></tr></thead>"
        "<tbody>\n");
    for (int i = 0; i < rows; i++) write_module(out, worst ? worst[i].module : list->module[i]);
    markup(out, "</tbody></table></div></details>\n");
    return QL_OK;
}

/* ---- the rest ----------------------------------------------------------------------------------------------------------------------------------- */

static ql_status write_recipe(FILE *out, const json_t *recipe) {
    const char *key;
    json_t *value;
    markup(out, "<h2 id=\"recipe\">Recipe</h2>\n<table><caption>As it was resolved; recipe.yaml has it as "
                "well</caption><tbody>\n");
    json_object_foreach((json_t *)(uintptr_t)recipe, key, value) {
        char *text;
        if (json_is_string(value)) {
            put_row(out, key, json_string_value(value));
            continue;
        }
        QL_TRY(ql_json_text(value, JSON_ENCODE_ANY | JSON_REAL_PRECISION(6), &text));
        put_row(out, key, text);
        ql_mfree(text);
    }
    markup(out, "</tbody></table>\n");
    return QL_OK;
}

static void write_kept(FILE *out, const json_t *kept) {
    size_t i;
    json_t *name;
    if (json_array_size(kept) == 0) return;
    markup(out, "<details><summary>%.0f modules kept in 16 bits</summary><ul>\n", (double)json_array_size(kept));
    json_array_foreach(kept, i, name) markup(out, "<li>%s</li>\n", json_string_value(name));
    markup(out, "</ul></details>\n");
}

static void write_environment(FILE *out, const json_t *environment) {
    markup(out,
           "<h2 id=\"environment\">Environment</h2>\n<table><caption>What may differ between runs that give the same "
           "bytes</caption><tbody>\n");
    put_row(out, "Qalib", report_text(environment, "qalib"));
    put_row(out, "Device", report_text(environment, "device"));
    put_row(out, "Processor and libraries", report_text(environment, "device_description"));
    put_figures(out, "Threads", "%.0f", report_number(environment, "threads"));
    markup(out, "</tbody></table>\n");
}

static void write_loading(FILE *out, const json_t *report) {
    int bits = (int)report_number(json_object_get(report, "recipe"), "bits");
    markup(out, "<h2 id=\"loading\">Loading</h2>\n<p>In the directory of the output:</p>\n");
    for (const loading *l = loading_for(report_text(report, "format"), bits); l->program; l++) {
        markup(out, "<h3>%s</h3>\n<pre tabindex=\"0\">", l->program);
        for (const char *line = l->text; *line; line += strcspn(line, "\n") + 1) {
            char one[256];
            snprintf(one, sizeof one, "%.*s", (int)strcspn(line, "\n"), line);
            markup(out, "%s\n", one);
        }
        markup(out, "</pre>\n");
    }
}

ql_status report_write_run(FILE *out, const report_sheet *sheet) {
    const report_run *run = &sheet->runs[0];
    const json_t *report = run->report, *environment = json_object_get(report, "environment");
    module_list list;
    QL_TRY(list_modules(report, sheet->arena, &list));
    markup(out,
           "<header><h1>%s, quantized</h1>\n<p class=\"faint\">Qalib %s; the numbers of this page are "
           "report.json's.</p></header>\n<main>\n",
           report_run_name(run), report_text(environment, "qalib"));
    write_summary(out, report, run->eval);
    QL_TRY(write_errors(out, &list, sheet->arena));
    QL_TRY(write_damping(out, &list, sheet->arena));
    QL_TRY(write_outliers(out, &list, sheet->arena));
    write_phases(out, environment);
    QL_TRY(write_modules(out, &list, sheet->arena));
    write_kept(out, json_object_get(report, "kept_in_16_bits"));
    write_loading(out, report);
    QL_TRY(write_recipe(out, json_object_get(report, "recipe")));
    write_environment(out, environment);
    markup(out, "</main>\n");
    return QL_OK;
}

static ql_status write_body(FILE *out, const void *what) {
    const report_sheet *sheet = what;
    return sheet->count == 1 ? report_write_run(out, sheet) : report_write_comparison(out, sheet);
}

ql_status report_html(const report_run *runs, int count, ql_arena *arena, char **text) {
    char *title;
    const report_sheet sheet = {runs, count, arena};
    QL_TRY(ql_arena_format(arena, &title, "%s%s", report_run_name(&runs[0]),
                           count == 1 ? ", quantized" : " and others, compared"));
    return markup_page(title, write_body, &sheet, arena, text);
}
