#include "calib/report_read.h"

#include <sys/stat.h>

#include "formats/json.h"
#include "host/file.h"

enum { MOST_BITS = 64, MOST_LAYERS = 10000 };
static const double LARGEST = 1e30;
static const int64_t MOST = INT64_MAX;

/* ---- fields -------------------------------------------------------------------------------------------------------------------------- */

typedef struct field {
    const char *key;
    enum { TEXT, COUNT, REAL, OPTIONAL_TEXT, OPTIONAL_REAL } kind;
} field;

static ql_status check_field(const json_t *object, const char *place, const field *f) {
    const char *text;
    int64_t count;
    double real;
    switch (f->kind) {
    case TEXT: return ql_json_string(object, place, f->key, &text);
    case COUNT: return ql_json_int(object, place, f->key, 0, MOST, &count);
    case REAL: return ql_json_real(object, place, f->key, -LARGEST, LARGEST, &real);
    case OPTIONAL_TEXT: return ql_json_string_or(object, place, f->key, &text);
    default: return ql_json_real_or(object, place, f->key, -LARGEST, LARGEST, &real);
    }
}

/* Until a field without a key. */
static ql_status check_fields(const json_t *object, const char *place, const field *fields) {
    if (!json_is_object(object))
        return ql_fail(QL_FORMAT, "%s: is %s, expected an object", place, ql_json_type_name(object));
    for (; fields->key; fields++) QL_TRY(check_field(object, place, fields));
    return QL_OK;
}

static ql_status check_array(const json_t *object, const char *place, const char *key) {
    const json_t *value = json_object_get(object, key);
    if (json_is_array(value)) return QL_OK;
    return ql_fail(QL_FORMAT, "%s: \"%s\" is %s, expected an array", place, key, ql_json_type_name(value));
}

/* ---- parts of a report --------------------------------------------------------------------------------------------------------------- */

static ql_status check_bits(const json_t *object, const char *place) {
    int64_t bits;
    return ql_json_int(object, place, "bits", 0, MOST_BITS, &bits);
}

static ql_status check_module(const json_t *module, const char *place) {
    static const field always[] = {{"name", TEXT}, {"n", COUNT}, {"k", COUNT}, {0}};
    static const field quantized[] = {{"group_size", REAL},
                                      {"method", TEXT},
                                      {"damp", REAL},
                                      {"dead_columns", COUNT},
                                      {"fallback", OPTIONAL_TEXT},
                                      {"stored", OPTIONAL_TEXT},
                                      {"loss", OPTIONAL_REAL},
                                      {"rtn_loss", OPTIONAL_REAL},
                                      {"relative_error", OPTIONAL_REAL},
                                      {"input_outlier", OPTIONAL_REAL},
                                      {0}};
    QL_TRY(check_fields(module, place, always));
    QL_TRY(check_bits(module, place));
    return report_has(module, "method") ? check_fields(module, place, quantized) : QL_OK;
}

static ql_status check_layers(const json_t *report, const char *place) {
    size_t l, m;
    json_t *layer, *module;
    QL_TRY(check_array(report, place, "layers"));
    size_t layers = json_array_size(json_object_get(report, "layers"));
    if (layers > MOST_LAYERS)
        return ql_fail(QL_FORMAT, "%s: %zu layers, at most %d are allowed", place, layers, MOST_LAYERS);
    json_array_foreach(json_object_get(report, "layers"), l, layer) {
        if (!json_is_array(layer))
            return ql_fail(QL_FORMAT, "%s: \"layers\"[%zu] is %s, expected an array", place, l,
                           ql_json_type_name(layer));
        json_array_foreach(layer, m, module)
            QL_TRY(ql_context(check_module(module, "module"), "%s: \"layers\"[%zu][%zu]", place, l, m));
    }
    return QL_OK;
}

static ql_status check_environment(const json_t *environment, const char *place) {
    static const field fields[] = {
        {"qalib", TEXT},   {"device", TEXT},           {"device_description", TEXT}, {"threads", COUNT},
        {"seconds", REAL}, {"peak_host_bytes", COUNT}, {"peak_device_bytes", COUNT}, {0}};
    static const field phase[] = {
        {"name", TEXT}, {"seconds", REAL}, {"flops", REAL}, {"peak_bytes", OPTIONAL_REAL}, {0}};
    size_t i;
    json_t *spent;
    QL_TRY(check_fields(environment, place, fields));
    QL_TRY(check_array(environment, place, "phases"));
    json_array_foreach(json_object_get(environment, "phases"), i, spent)
        QL_TRY(ql_context(check_fields(spent, "phase", phase), "%s: \"phases\"[%zu]", place, i));
    return QL_OK;
}

static ql_status check_parts(const json_t *report, const char *place) {
    static const field totals[] = {{"modules_quantized", COUNT},
                                   {"modules_kept", COUNT},
                                   {"fallbacks", COUNT},
                                   {"dead_columns", COUNT},
                                   {"mean_relative_error", REAL},
                                   {"loss_over_rtn", REAL},
                                   {0}};
    static const field recipe[] = {{"method", TEXT}, {0}};
    size_t i;
    json_t *name;
    QL_TRY(ql_context(check_fields(json_object_get(report, "totals"), "\"totals\"", totals), "%s", place));
    QL_TRY(ql_context(check_fields(json_object_get(report, "recipe"), "\"recipe\"", recipe), "%s", place));
    QL_TRY(ql_context(check_bits(json_object_get(report, "recipe"), "\"recipe\""), "%s", place));
    QL_TRY(ql_context(check_environment(json_object_get(report, "environment"), "\"environment\""), "%s", place));
    QL_TRY(check_array(report, place, "kept_in_16_bits"));
    json_array_foreach(json_object_get(report, "kept_in_16_bits"), i, name) if (!json_is_string(name)) return ql_fail(
        QL_FORMAT, "%s: \"kept_in_16_bits\"[%zu] is %s, expected a string", place, i, ql_json_type_name(name));
    return check_layers(report, place);
}

ql_status report_check(const json_t *report, const char *place) {
    static const field fields[] = {{"job", TEXT},
                                   {"model", TEXT},
                                   {"format", TEXT},
                                   {"statistics", TEXT},
                                   {"samples", COUNT},
                                   {"tokens", COUNT},
                                   {"samples_skipped", COUNT},
                                   {"source_bytes", COUNT},
                                   {"output_bytes", COUNT},
                                   {"bits_per_weight", REAL},
                                   {"bits_per_quantized_weight", REAL},
                                   {"importance", OPTIONAL_TEXT},
                                   {0}};
    int64_t version;
    QL_TRY(ql_json_int(report, place, "version", 0, MOST, &version));
    if (version != 1)
        return ql_fail(QL_FORMAT, "%s: version %lld of the report, this Qalib reads version 1", place,
                       (long long)version);
    QL_TRY(check_fields(report, place, fields));
    return check_parts(report, place);
}

static bool is_directory(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

ql_status report_load(const char *path, json_t **report) {
    ql_arena *arena;
    char *file;
    *report = NULL;
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = ql_arena_format(arena, &file, is_directory(path) ? "%s/report.json" : "%s", path);
    if (status == QL_OK && is_directory(path) && !ql_path_exists(file))
        status = ql_fail(QL_MISSING,
                         "%s: no report.json; expected what quantize has made, or one of its several outputs", path);
    if (status == QL_OK) status = ql_json_load(file, REPORT_MOST_BYTES, report);
    ql_arena_close(arena);
    return status;
}

/* ---- what eval says -------------------------------------------------------------------------------------------------------------------- */

bool report_is_eval(const json_t *document) {
    return json_object_get(document, "perplexity") && !json_object_get(document, "layers");
}

ql_status report_check_eval(const json_t *eval, const char *place) {
    static const field fields[] = {{"model", TEXT},
                                   {"job", OPTIONAL_TEXT},
                                   {"perplexity", REAL},
                                   {"tokens_sha256", TEXT},
                                   {"n_tokens", COUNT},
                                   {"kld_mean", OPTIONAL_REAL},
                                   {"top1_agreement", OPTIONAL_REAL},
                                   {"base_perplexity", OPTIONAL_REAL},
                                   {0}};
    return check_fields(eval, place, fields);
}
