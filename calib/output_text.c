#include "calib/output_text.h"

#include <ctype.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "calib/loading.h"
#include "formats/json_scan.h"
#include "host/file.h"

/* jansson prints 0.05 with 17 digits as 0.050000000000000003; 15 give back every decimal that a person typed. */
#define TEXT_FLAGS (JSON_INDENT(2) | JSON_REAL_PRECISION(15))

ql_status output_json_text(const json_t *document, size_t flags, ql_arena *arena, char **text) {
    char *dump = json_dumps(document, TEXT_FLAGS | flags);
    if (!dump) return ql_fail(QL_NOMEM, "no memory for JSON");
    ql_status status = ql_arena_format(arena, text, "%s\n", dump);
    free(dump);
    return status;
}

/* ---- config.json ------------------------------------------------------------------------------------------------------------ */

/* The scanner walks text that a JSON parser has accepted. */
static const char *skip_space(const char *at) {
    while (*at && strchr(" \t\r\n", *at)) at++;
    return at;
}

static const char *skip_string(const char *at) {
    for (at++; *at && *at != '"'; at++)
        if (*at == '\\' && at[1]) at++;
    return *at ? at + 1 : at;
}

static const char *skip_value(const char *at) {
    if (*at == '"') return skip_string(at);
    if (*at != '{' && *at != '[') return at + strcspn(at, ",}] \t\r\n");
    int depth = 0;
    while (*at) {
        if (*at == '"') {
            at = skip_string(at);
            continue;
        }
        depth += (*at == '{' || *at == '[') - (*at == '}' || *at == ']');
        at++;
        if (depth == 0) break;
    }
    return at;
}

/* Where the value of a key of the top-level object lies; without the key both are the end of the last value. */
static bool find_value(const char *text, const char *key, const char **begin, const char **end) {
    const char *at = skip_space(skip_space(text) + 1);
    *begin = *end = at;
    while (*at == '"') {
        const char *name = at + 1, *behind = skip_string(at);
        *begin = skip_space(skip_space(behind) + 1); /* past the colon */
        *end = skip_value(*begin);
        if ((size_t)(behind - 1 - name) == strlen(key) && strncmp(name, key, strlen(key)) == 0) return true;
        at = skip_space(*end);
        if (*at == ',') at = skip_space(at + 1);
    }
    *begin = *end;
    return false;
}

static ql_status set_key(const char *text, const char *key, const char *value, ql_arena *arena, char **out) {
    const char *begin, *end, *comma = *skip_space(skip_space(text) + 1) == '}' ? "" : ",";
    if (find_value(text, key, &begin, &end))
        return ql_arena_format(arena, out, "%.*s%s%s", (int)(begin - text), text, value, end);
    return ql_arena_format(arena, out, "%.*s%s\n  \"%s\": %s%s", (int)(end - text), text, comma, key, value, end);
}

/* A nested value: its lines move in by two columns. */
static ql_status nested_text(const json_t *value, ql_arena *arena, char **text) {
    char *plain, *to;
    size_t lines = 1;
    QL_TRY(output_json_text(value, 0, arena, &plain));
    plain[strlen(plain) - 1] = 0;
    for (const char *c = plain; *c; c++) lines += *c == '\n';
    QL_TRY(ql_take(arena, strlen(plain) + 2 * lines + 1, 1, text));
    to = *text;
    for (const char *c = plain; *c; c++) {
        *to++ = *c;
        if (*c == '\n') *to++ = ' ', *to++ = ' ';
    }
    return QL_OK;
}

ql_status output_config_text(const char *source, const json_t *quantization_config, ql_dtype dtype, ql_arena *arena,
                             char **text) {
    const char *value = dtype == QL_F16 ? "\"float16\"" : "\"bfloat16\"", *begin, *end;
    char *quantization;
    bool has_new = find_value(source, "dtype", &begin, &end), has_old = find_value(source, "torch_dtype", &begin, &end);
    QL_TRY(ql_arena_string(arena, source, text));
    if (has_new) QL_TRY(set_key(*text, "dtype", value, arena, text));
    if (has_old || !has_new) QL_TRY(set_key(*text, "torch_dtype", value, arena, text));
    if (!quantization_config) return QL_OK;
    QL_TRY(nested_text(quantization_config, arena, &quantization));
    return set_key(*text, "quantization_config", quantization, arena, text);
}

/* ---- index ------------------------------------------------------------------------------------------------------------------- */

ql_status output_index_text(const output_plan *plan, ql_arena *arena, char **text) {
    json_t *map = json_object();
    int failed = 0;
    ql_status status = QL_OK;
    for (int64_t i = 0; i < plan->count && status == QL_OK; i++) {
        char *shard;
        status = output_shard_name(plan, plan->items[i].shard, arena, &shard);
        if (status == QL_OK) failed |= json_object_set_new(map, plan->items[i].tensor.name, json_string(shard));
    }
    json_t *index =
        json_pack("{s:{s:I}, s:o}", "metadata", "total_size", (json_int_t)plan->tensor_bytes, "weight_map", map);
    if (status == QL_OK && (failed || !index)) status = ql_fail(QL_NOMEM, "no memory for the index");
    if (status == QL_OK) status = output_json_text(index, JSON_SORT_KEYS, arena, text);
    json_decref(index);
    return status;
}

/* ---- model card ---------------------------------------------------------------------------------------------------------------- */

/* .../models--org--name/snapshots/<revision> is org/name, anything else is called after its directory, if that is UTF-8. */
ql_status output_base_model(const char *dir, ql_arena *arena, char **name) {
    static const char mark[] = "models--";
    char path[PATH_MAX];
    if (!realpath(dir, path)) return ql_fail_errno("%s", dir);
    char *cached = strstr(path, mark), *slash = strrchr(path, '/');
    if (!scan_is_text(path, strlen(path))) return ql_arena_string(arena, "model", name);
    if (!cached) return ql_arena_string(arena, slash && slash[1] ? slash + 1 : path, name);
    cached += sizeof mark - 1;
    cached[strcspn(cached, "/")] = 0;
    char *split = strstr(cached, "--");
    if (!split) return ql_arena_string(arena, cached, name);
    return ql_arena_format(arena, name, "%.*s/%s", (int)(split - cached), cached, split + 2);
}

/* The lines "license: ...", "license_name: ...", "license_link: ..." of the front matter of the source's README.md. */
static ql_status license_lines(const char *dir, ql_arena *arena, char **lines) {
    enum { LIMIT = 16 << 20 };
    char *path, *text, *to;
    size_t size;
    QL_TRY(ql_arena_format(arena, &path, "%s/README.md", dir));
    QL_TRY(ql_arena_string(arena, "", lines));
    if (!ql_path_exists(path)) return QL_OK;
    ql_status status = ql_file_load(path, LIMIT, arena, &text, &size);
    if (status != QL_OK) return status == QL_NOMEM ? status : QL_OK; /* a card that cannot be read is no obstacle */
    if (strncmp(text, "---\n", 4) != 0) return QL_OK;
    QL_TRY(ql_take(arena, size + 1, 1, lines));
    to = *lines;
    for (const char *line = text + 4; *line && strncmp(line, "---", 3) != 0;) {
        size_t length = strcspn(line, "\n");
        if (strncmp(line, "license", 7) == 0 && line[length]) memcpy(to, line, length + 1), to += length + 1;
        line += length + (line[length] == '\n');
    }
    return QL_OK;
}

static ql_status summary(const layout_scheme *scheme, const char *mix, ql_arena *arena, char **text) {
    if (mix) return ql_arena_format(arena, text, "A GGUF file, %s, for llama.cpp and Ollama.", mix);
    if (!scheme) return ql_arena_string(arena, "The quantized weights, decoded to a plain 16-bit checkpoint.", text);
    char *group;
    if (scheme->group == -1) QL_TRY(ql_arena_string(arena, "one group per row", &group));
    else QL_TRY(ql_arena_format(arena, &group, "groups of %lld", (long long)scheme->group));
    return ql_arena_format(arena, text, "%d-bit weights, %s, %s, in the %s format%s.", scheme->bits, group,
                           scheme->symmetric ? "symmetric" : "asymmetric", layout_name(scheme->layout),
                           scheme->layout != LAYOUT_GPTQ ? ""
                           : scheme->version == 2        ? ", version 2"
                                                         : ", version 1");
}

/* "\n## Title\n\nbody\n", nothing without a body. */
static ql_status section(const char *title, const char *before, const char *body, const char *after, ql_arena *arena,
                         char **text) {
    if (!body) return ql_arena_string(arena, "", text);
    bool newline = body[0] && body[strlen(body) - 1] == '\n';
    return ql_arena_format(arena, text, "\n## %s\n\n%s%s%s%s", title, before, body, newline ? "" : "\n", after);
}

/* A name as a double-quoted scalar of YAML, which JSON's strings are, and the end of its line. */
static ql_status quoted(const char *name, ql_arena *arena, char **text) {
    json_t *string = json_string(name);
    ql_status status = string ? output_json_text(string, JSON_ENCODE_ANY, arena, text)
                              : ql_fail(QL_NOMEM, "no memory for the model card");
    json_decref(string);
    return status;
}

/* One block of code for each program. */
static ql_status loading_text(const char *format, int bits, ql_arena *arena, char **text) {
    QL_TRY(ql_arena_string(arena, "", text));
    for (const loading *l = loading_for(format, bits); l->program; l++)
        QL_TRY(ql_arena_format(arena, text, "%s%s```%s\n%s```\n", *text, **text ? "\n" : "", l->language, l->text));
    return QL_OK;
}

ql_status output_card_text(const char *source_dir, const layout_scheme *scheme, const output_texts *texts,
                           ql_arena *arena, char **text) {
    char *derived, *license, *what, *recipe, *calibration, *metrics, *tags, *yaml_base, *blocks;
    QL_TRY(output_base_model(source_dir, arena, &derived));
    QL_TRY(license_lines(source_dir, arena, &license));
    QL_TRY(summary(scheme, texts->mix, arena, &what));
    QL_TRY(section("Recipe", "```yaml\n", texts->recipe_yaml, "```\n", arena, &recipe));
    QL_TRY(section("Calibration", "", texts->calibration, "", arena, &calibration));
    QL_TRY(section("Quality", "", texts->metrics, "", arena, &metrics));
    if (texts->mix) QL_TRY(ql_arena_string(arena, "tags:\n- qalib\n- gguf\n", &tags));
    else if (scheme)
        QL_TRY(ql_arena_format(arena, &tags, "tags:\n- qalib\n- %s\n- %d-bit\n", layout_method(scheme), scheme->bits));
    else QL_TRY(ql_arena_string(arena, "tags:\n- qalib\n", &tags));
    const char *base = texts->base_model ? texts->base_model : derived;
    QL_TRY(quoted(base, arena, &yaml_base));
    const char *slash = strrchr(base, '/');
    const bool gptq = scheme && scheme->layout == LAYOUT_GPTQ;
    const char *format = texts->mix ? "gguf" : gptq ? "gptq" : "";
    QL_TRY(loading_text(format, scheme ? scheme->bits : 16, arena, &blocks));
    return ql_arena_format(arena, text,
                           "---\nbase_model: %sbase_model_relation: quantized\nlibrary_name: "
                           "%s\nquantized_by: qalib\n%s%s---\n"
                           "\n# %s, quantized\n\n%s Made from %s with Qalib %s.\n%s%s%s"
                           "\n## Loading\n\nIn this directory:\n\n%s",
                           yaml_base, texts->mix ? "gguf" : "transformers", license, tags, slash ? slash + 1 : base,
                           what, base, ql_version(), recipe, calibration, metrics, blocks);
}
