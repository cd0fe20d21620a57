#include "calib/report.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "calib/report_read.h"

static json_t *real_or_null(double value) { return isfinite(value) ? json_real(value) : json_null(); }

static json_t *report_module(const qmodule *q, const linear_record *r) {
    json_t *j = json_pack("{s:s, s:I, s:I, s:i, s:I, s:s, s:f, s:I, s:s?}", "name", q->name, "n", (json_int_t)q->n, "k",
                          (json_int_t)q->k, "bits", q->bits, "group_size", (json_int_t)q->group, "method", r->method,
                          "damp", r->damp, "dead_columns", (json_int_t)r->dead, "fallback", r->fallback);
    if (q->type == CODE_BLOCKS) json_object_set_new(j, "stored", json_string(q->stored->name));
    json_object_set_new(j, "input_outlier", r->outlier > 0 ? real_or_null(r->outlier) : json_null());
    json_object_set_new(j, "loss", real_or_null(r->loss));
    json_object_set_new(j, "rtn_loss", real_or_null(r->rtn_loss));
    json_object_set_new(j, "relative_error", r->norm > 0 ? real_or_null(r->loss / r->norm) : json_null());
    return j;
}

static json_t *report_unquantized(const model_config *config, int64_t layer, linear_id id) {
    char name[NAME_SIZE];
    int64_t n, k;
    module_name(name, layer, id);
    linear_shape(config, id, &n, &k);
    return json_pack("{s:s, s:I, s:I, s:i}", "name", name, "n", (json_int_t)n, "k", (json_int_t)k, "bits", 16);
}

json_t *report_layer(const layer_result *result, const module_rule *rules, const model_config *config) {
    json_t *list = json_array();
    for (linear_id id = 0; id < LINEARS; id++)
        json_array_append_new(list, rules[id].skip ? report_unquantized(config, result->layer, id)
                                                   : report_module(&result->module[id], &result->record[id]));
    return list;
}

json_t *report_totals(const json_t *layers) {
    int64_t quantized = 0, kept = 0, fallbacks = 0, dead = 0;
    double relative = 0, loss = 0, rtn_loss = 0;
    size_t l, m;
    json_t *layer, *module;
    json_array_foreach(layers, l, layer) json_array_foreach(layer, m, module) {
        if (!json_object_get(module, "method")) {
            kept++;
            continue;
        }
        quantized++;
        fallbacks += json_is_string(json_object_get(module, "fallback"));
        dead += (int64_t)report_number(module, "dead_columns");
        relative += report_number(module, "relative_error");
        loss += report_number(module, "loss");
        rtn_loss += report_number(module, "rtn_loss");
    }
    return json_pack("{s:I, s:I, s:I, s:I, s:f, s:f}", "modules_quantized", (json_int_t)quantized, "modules_kept",
                     (json_int_t)kept, "fallbacks", (json_int_t)fallbacks, "dead_columns", (json_int_t)dead,
                     "mean_relative_error", quantized ? relative / (double)quantized : 0.0, "loss_over_rtn",
                     rtn_loss > 0 ? loss / rtn_loss : 1.0);
}

json_t *report_environment(engine *e, size_t peak_device_bytes) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return json_pack("{s:s, s:s, s:s, s:i, s:f, s:o, s:s, s:I, s:I}", "qalib", QL_VERSION, "device",
                     ql_ctx_device(e->ctx), "device_description", ql_ctx_describe(e->ctx), "threads",
                     ql_ctx_threads(e->ctx), "seconds", phases_total(&e->phases), "phases", phases_json(&e->phases),
                     "rows", row_place_names[e->place], "peak_host_bytes", (json_int_t)usage.ru_maxrss * 1024,
                     "peak_device_bytes", (json_int_t)peak_device_bytes);
}

static void print_module(const json_t *module) {
    double rtn = report_number(module, "rtn_loss");
    char shape[32], scheme[32];
    snprintf(shape, sizeof shape, "%.0fx%.0f", report_number(module, "n"), report_number(module, "k"));
    if (json_object_get(module, "stored")) snprintf(scheme, sizeof scheme, "%s", report_text(module, "stored"));
    else
        snprintf(scheme, sizeof scheme, "w%.0fg%.0f", report_number(module, "bits"),
                 report_number(module, "group_size"));
    if (!json_object_get(module, "method")) printf("%-40s %14s %9s\n", report_text(module, "name"), shape, "16 bit");
    else
        printf("%-40s %14s %9s %6s %12.3e %10.3f\n", report_text(module, "name"), shape, scheme,
               report_text(module, "method"), report_number(module, "relative_error"),
               rtn > 0 ? report_number(module, "loss") / rtn : 1.0);
}

static void print_modules(const json_t *layers) {
    size_t l, m;
    json_t *layer, *module;
    printf("%-40s %14s %9s %6s %12s %10s\n", "module", "shape", "scheme", "method", "rel. error", "vs nearest");
    json_array_foreach(layers, l, layer) json_array_foreach(layer, m, module) print_module(module);
}

/* One line for each layer: its modules, and the one that lost most. */
static void print_layers(const json_t *layers) {
    size_t l, m;
    json_t *layer, *module;
    printf("%-6s %10s %10s %12s %10s  %s\n", "layer", "quantized", "fallbacks", "rel. error", "vs nearest", "worst");
    json_array_foreach(layers, l, layer) {
        json_t *alone = json_pack("[O]", layer), *totals = report_totals(alone);
        const json_t *worst = NULL;
        json_array_foreach(layer, m, module) {
            if (!worst || report_number(module, "relative_error") > report_number(worst, "relative_error"))
                worst = module;
        }
        printf("%-6zu %10.0f %10.0f %12.3e %10.3f  %s\n", l, report_number(totals, "modules_quantized"),
               report_number(totals, "fallbacks"), report_number(totals, "mean_relative_error"),
               report_number(totals, "loss_over_rtn"), report_text(worst, "name"));
        json_decref(totals);
        json_decref(alone);
    }
}

static void print_time(const json_t *environment) {
    size_t i;
    json_t *spent;
    printf("%.1f s on %s:", report_number(environment, "seconds"), report_text(environment, "device_description"));
    json_array_foreach(json_object_get(environment, "phases"), i, spent) {
        if (report_number(spent, "seconds") >= 0.05)
            printf(" %s %.1f", report_text(spent, "name"), report_number(spent, "seconds"));
    }
    printf("\npeak memory %.0f MiB", report_number(environment, "peak_host_bytes") / 1048576);
    if (strncmp(report_text(environment, "device"), "cuda", 4) == 0)
        printf(", on the device %.0f MiB; activations waited on the %s",
               report_number(environment, "peak_device_bytes") / 1048576, report_text(environment, "rows"));
    putchar('\n');
}

void report_print(const json_t *report) {
    enum { MANY_LAYERS = 100 / LINEARS }; /* more modules than fit a screen or two */
    const json_t *layers = json_object_get(report, "layers"), *totals = json_object_get(report, "totals");
    if (json_array_size(layers) > MANY_LAYERS) print_layers(layers);
    else print_modules(layers);
    printf("\nstatistics %s: %.0f rows, %.0f tokens, %.0f rows skipped\n", report_text(report, "statistics"),
           report_number(report, "samples"), report_number(report, "tokens"), report_number(report, "samples_skipped"));
    printf("%.0f modules quantized, %.0f kept in 16 bits, %.0f fallbacks; loss %.3f of nearest rounding's\n",
           report_number(totals, "modules_quantized"), report_number(totals, "modules_kept"),
           report_number(totals, "fallbacks"), report_number(totals, "loss_over_rtn"));
    printf("%.0f -> %.0f bytes; %.3f bits per weight in the quantized modules, %.3f over all tensors\n",
           report_number(report, "source_bytes"), report_number(report, "output_bytes"),
           report_number(report, "bits_per_quantized_weight"), report_number(report, "bits_per_weight"));
    print_time(json_object_get(report, "environment"));
}
