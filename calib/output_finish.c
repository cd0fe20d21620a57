/* The files around the shards, and the order in which a directory becomes complete. */
#include <dirent.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "calib/output_parts.h"
#include "calib/output_text.h"
#include "calib/report_html.h"

enum { TEXT_LIMIT = 256 << 20 }; /* of a file that is carried over or edited */

/* ---- files and their hashes ------------------------------------------------------------------------------------------------------ */

ql_status output_remember(output *out, const char *name, const unsigned char sha256[32]) {
    written *file, **link = &out->files;
    char *copy;
    QL_TRY(ql_take(out->arena, 1, sizeof *file, &file));
    QL_TRY(ql_arena_string(out->arena, name, &copy));
    file->name = copy;
    ql_hex(sha256, 32, file->sha256);
    while (*link && strcmp((*link)->name, name) < 0) link = &(*link)->next;
    file->next = *link;
    *link = file;
    return QL_OK;
}

static ql_status save(output *out, const char *name, const void *data, size_t size) {
    char *path;
    QL_TRY(ql_arena_format(out->scratch, &path, "%s/%s", out->dir, name));
    return ql_file_save(path, data, size);
}

/* Saves a text and counts it among the files of SHA256SUMS. */
static ql_status save_text(output *out, const char *name, const char *text) {
    unsigned char sha256[32];
    ql_sha256(text, strlen(text), sha256);
    QL_TRY(output_remember(out, name, sha256));
    return save(out, name, text, strlen(text));
}

/* ---- the end --------------------------------------------------------------------------------------------------------------------- */

static bool is_carried_over(const char *name) {
    static const char *const names[] = {
        "added_tokens.json", "chat_template.jinja",     "chat_template.json", "generation_config.json", "merges.txt",
        "tokenizer.json",    "special_tokens_map.json", "tokenizer.model",    "tokenizer_config.json",  "vocab.json",
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) return true;
    return false;
}

static bool is_licence(const char *name) {
    static const char *const starts[] = {"LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY"};
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++)
        if (strncasecmp(name, starts[i], strlen(starts[i])) == 0) return true;
    return false;
}

/* A file of the source directory; symlinks stay within the rules of its checkpoint. */
static ql_status load_source(output *out, const char *name, char **data, size_t *size) {
    char *path;
    ql_source *source;
    QL_TRY(ql_arena_format(out->scratch, &path, "%s/%s", checkpoint_dir(out->ck), name));
    QL_TRY(ql_source_open(path, checkpoint_root(out->ck), &source));
    ql_status status = QL_OK;
    *size = ql_source_size(source);
    if (*size > TEXT_LIMIT)
        status = ql_fail(QL_FORMAT, "%s: %zu bytes, at most %d are allowed", path, *size, TEXT_LIMIT);
    if (status == QL_OK) status = ql_take(out->scratch, *size + 1, 1, data);
    if (status == QL_OK) status = ql_source_read(source, *data, *size, 0);
    ql_source_close(source);
    return status;
}

static ql_status carry_over_file(output *out, const char *name) {
    char *data;
    size_t size;
    unsigned char sha256[32];
    QL_TRY(load_source(out, name, &data, &size));
    ql_sha256(data, size, sha256);
    QL_TRY(output_remember(out, name, sha256));
    return save(out, name, data, size);
}

static ql_status carry_over(output *out) {
    DIR *dir = opendir(checkpoint_dir(out->ck));
    if (!dir) return ql_fail_errno("%s: cannot read the directory", checkpoint_dir(out->ck));
    ql_status status = QL_OK;
    for (struct dirent *entry; status == QL_OK && (entry = readdir(dir));)
        if (is_licence(entry->d_name) || (!out->gguf && is_carried_over(entry->d_name)))
            status = carry_over_file(out, entry->d_name);
    closedir(dir);
    return status;
}

static ql_status save_report(output *out, const output_texts *texts) {
    char *text;
    if (texts->recipe_yaml) QL_TRY(save_text(out, "recipe.yaml", texts->recipe_yaml));
    if (texts->report) {
        QL_TRY(output_json_text(texts->report, 0, out->scratch, &text));
        QL_TRY(save_text(out, "report.json", text));
        QL_TRY(report_html(&(report_run){.report = texts->report}, 1, out->scratch, &text));
        QL_TRY(save_text(out, "report.html", text));
    }
    QL_TRY(output_card_text(checkpoint_dir(out->ck), out->scheme, texts, out->scratch, &text));
    return save_text(out, "README.md", text);
}

static ql_status save_sums(output *out) {
    char *text, *to;
    size_t size = 1;
    for (const written *file = out->files; file; file = file->next) size += 64 + 2 + strlen(file->name) + 1;
    QL_TRY(ql_take(out->scratch, size, 1, &text));
    to = text;
    for (const written *file = out->files; file; file = file->next) {
        memcpy(to, file->sha256, 64);
        to = stpcpy(stpcpy(stpcpy(to + 64, "  "), file->name), "\n");
    }
    return save(out, "SHA256SUMS", text, (size_t)(to - text));
}

static ql_status config_texts(output *out, char **config, char **quantize_config) {
    char *source;
    size_t size;
    json_t *quantization = NULL;
    *quantize_config = NULL;
    QL_TRY(load_source(out, "config.json", &source, &size));
    if (out->scheme) {
        layout_scheme scheme = *out->scheme;
        scheme.dtype = out->dtype;
        QL_TRY(layout_config(&scheme, &quantization));
    }
    ql_status status = output_config_text(source, quantization, out->dtype, out->scratch, config);
    if (status == QL_OK && quantization && out->scheme->layout == LAYOUT_GPTQ)
        status = output_json_text(quantization, 0, out->scratch, quantize_config);
    json_decref(quantization);
    return status;
}

static ql_status remove_marker(output *out) {
    char *marker;
    QL_TRY(output_marker(out, &marker));
    if (unlink(marker) == 0) return QL_OK;
    ql_status status = ql_fail_errno("%s: cannot remove", marker);
    return status == QL_MISSING ? QL_DISK : status; /* with its directory: no input */
}

/* Index and config.json come last, and after a sum of everything, so that no loader takes a half-written directory. */
static ql_status save_last(output *out, const char *config) {
    static const char index_name[] = "model.safetensors.index.json";
    char *index = NULL;
    unsigned char sha256[32];
    ql_sha256(config, strlen(config), sha256);
    QL_TRY(output_remember(out, "config.json", sha256));
    if (out->plan.shards > 1) {
        QL_TRY(output_index_text(&out->plan, out->scratch, &index));
        ql_sha256(index, strlen(index), sha256);
        QL_TRY(output_remember(out, index_name, sha256));
    }
    QL_TRY(save_sums(out));
    if (index) QL_TRY(save(out, index_name, index, strlen(index)));
    QL_TRY(save(out, "config.json", config, strlen(config)));
    return remove_marker(out);
}

/* The file of weights holds what config.json and the tokenizer say: a directory without them is no Hugging Face model. */
static ql_status finish_gguf(output *out, const output_texts *texts) {
    QL_TRY(carry_over(out));
    QL_TRY(save_report(out, texts));
    QL_TRY(save_sums(out));
    return remove_marker(out);
}

ql_status output_finish(output *out, const output_texts *texts) {
    char *config, *quantize_config;
    if (out->gguf) return finish_gguf(out, texts);
    QL_TRY(output_advance(out, -1, NULL, NULL));
    if (out->next < out->plan.count)
        return ql_fail(QL_INTERNAL, "%s: layer %lld is missing", out->dir, (long long)out->plan.items[out->next].layer);
    QL_TRY(output_close_shard(out));
    QL_TRY(carry_over(out));
    QL_TRY(save_report(out, texts));
    QL_TRY(config_texts(out, &config, &quantize_config));
    if (quantize_config) QL_TRY(save_text(out, "quantize_config.json", quantize_config));
    return save_last(out, config);
}
