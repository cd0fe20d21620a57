/* The tokenizer keys of GGUF, from the files beside a checkpoint.  SentencePiece's own model comes first: it has the true scores. */
#include "formats/gguf_tokenizer.h"

#include <string.h>

#include "formats/json_scan.h"
#include "formats/layout_gguf.h"

enum { FILE_LIMIT = 256 << 20 };

static const float ADDED_SCORE = -1000, UNUSED_SCORE = -10000; /* as llama.cpp's converter has them */

ql_status vocabulary_set(vocabulary *v, const char *place, int64_t id, const char *text, float score, token_kind kind) {
    if (id < 0 || id >= v->count)
        return ql_fail(QL_MISMATCH, "%s: token %lld \"%.100s\", the embedding has %lld rows", place, (long long)id,
                       text, (long long)v->count);
    v->text[id] = text, v->score[id] = score, v->kind[id] = kind;
    return QL_OK;
}

/* The files, each NULL if it is not there. */
typedef struct files {
    const checkpoint *ck;
    char *spm_path, *json_path;
    json_t *tokenizer, *config, *added; /* tokenizer.json, tokenizer_config.json, added_tokens.json */
} files;

static ql_status load_file(const files *f, const char *name, ql_arena *arena, char **path, char **data, size_t *size) {
    ql_source *source;
    *data = NULL, *size = 0;
    QL_TRY(ql_arena_format(arena, path, "%s/%s", checkpoint_dir(f->ck), name));
    if (!ql_path_exists(*path)) return QL_OK;
    QL_TRY(ql_source_open(*path, checkpoint_root(f->ck), &source));
    ql_status status = QL_OK;
    *size = ql_source_size(source);
    if (*size > FILE_LIMIT)
        status = ql_fail(QL_FORMAT, "%s: %zu bytes, at most %d are allowed", *path, *size, FILE_LIMIT);
    if (status == QL_OK) status = ql_take(arena, *size + 1, 1, data);
    if (status == QL_OK) status = ql_source_read(source, *data, *size, 0);
    ql_source_close(source);
    return status;
}

static ql_status load_json(const files *f, const char *name, ql_arena *arena, char **path, json_t **document) {
    char *data;
    size_t size;
    *document = NULL;
    QL_TRY(load_file(f, name, arena, path, &data, &size));
    return data ? ql_json_parse(*path, data, size, document) : QL_OK;
}

/* ---- added tokens ---------------------------------------------------------------------------------------------------------------- */

static bool looks_special(const char *text) {
    size_t size = strlen(text);
    return size > 4 && strncmp(text, "<|", 2) == 0 && strcmp(text + size - 2, "|>") == 0;
}

/* U+2581 becomes the space that it stands for. */
static ql_status plain_text(const char *text, ql_arena *arena, char **out) {
    QL_TRY(ql_arena_string(arena, text, out));
    for (char *mark; (mark = strstr(*out, "\xe2\x96\x81"));) {
        *mark = ' ';
        memmove(mark + 1, mark + 3, strlen(mark + 3) + 1);
    }
    return QL_OK;
}

/* A token that the vocabulary has already as it is keeps its kind: SentencePiece knows better which one is unknown. */
static ql_status add_token(vocabulary *v, const char *place, int64_t id, const char *text, bool special,
                           ql_arena *arena) {
    char *copy;
    special = special || looks_special(text);
    if (id >= 0 && id < v->count && v->kind[id] != TOKEN_NORMAL && v->kind[id] != TOKEN_UNUSED &&
        strcmp(v->text[id], text) == 0)
        return QL_OK;
    if (special) QL_TRY(ql_arena_string(arena, text, &copy));
    else QL_TRY(plain_text(text, arena, &copy));
    return vocabulary_set(v, place, id, copy, ADDED_SCORE, special ? TOKEN_CONTROL : TOKEN_USER);
}

static ql_status add_tokens(const files *f, const char *place, vocabulary *v, ql_arena *arena) {
    const json_t *list = json_object_get(f->tokenizer, "added_tokens");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *token = json_array_get(list, i), *id = json_object_get(token, "id");
        const char *text = json_string_value(json_object_get(token, "content"));
        if (!text || !json_is_integer(id))
            return ql_fail(QL_FORMAT, "%s: added token %zu has no id or no content", place, i);
        QL_TRY(
            add_token(v, place, json_integer_value(id), text, json_is_true(json_object_get(token, "special")), arena));
    }
    const char *text;
    json_t *id;
    json_object_foreach(f->added, text, id) {
        if (!json_is_integer(id)) return ql_fail(QL_FORMAT, "%s: added token \"%.100s\" has no id", place, text);
        int64_t number = json_integer_value(id);
        bool known = number >= 0 && number < v->count && v->kind[number] != TOKEN_UNUSED;
        if (!known) QL_TRY(add_token(v, place, number, text, false, arena));
    }
    return QL_OK;
}

/* ---- special tokens ------------------------------------------------------------------------------------------------------------ */

/* "bos_token": "<s>" or {"content": "<s>"}. */
static const char *special_text(const json_t *config, const char *name) {
    const json_t *value = json_object_get(config, name);
    return json_string_value(json_is_object(value) ? json_object_get(value, "content") : value);
}

static int64_t find_token(const vocabulary *v, const char *text) {
    for (int64_t i = 0; text && i < v->count; i++)
        if (strcmp(v->text[i], text) == 0) return i;
    return -1;
}

/* By name in tokenizer_config.json, else by number in config.json, the first of several. */
static ql_status put_special(const files *f, const vocabulary *v, gguf_meta *meta) {
    static const struct {
        const char *text, *number, *key;
    } specials[] = {
        {"bos_token", "bos_token_id", "tokenizer.ggml.bos_token_id"},
        {"eos_token", "eos_token_id", "tokenizer.ggml.eos_token_id"},
        {"unk_token", "unk_token_id", "tokenizer.ggml.unknown_token_id"},
        {"pad_token", "pad_token_id", "tokenizer.ggml.padding_token_id"},
    };
    for (size_t i = 0; i < sizeof specials / sizeof *specials; i++) {
        int64_t id = find_token(v, special_text(f->config, specials[i].text));
        const json_t *number = json_object_get(checkpoint_config(f->ck), specials[i].number);
        if (json_is_array(number)) number = json_array_get(number, 0);
        if (id < 0 && json_is_integer(number)) id = json_integer_value(number);
        if (id >= 0 && id < v->count) QL_TRY(gguf_put_u32(meta, specials[i].key, (uint32_t)id));
    }
    return QL_OK;
}

static ql_status put_flag(const files *f, const char *name, const char *key, gguf_meta *meta) {
    const json_t *value = json_object_get(f->config, name);
    return json_is_boolean(value) ? gguf_put_bool(meta, key, json_is_true(value)) : QL_OK;
}

/* A string, or the one called "default" of several; a file of its own comes first. */
static ql_status put_template(const files *f, ql_arena *arena, gguf_meta *meta) {
    const json_t *template = json_object_get(f->config, "chat_template");
    const char *text = json_string_value(template);
    char *path, *own;
    size_t size;
    for (size_t i = 0; i < json_array_size(template); i++) {
        const char *name = json_string_value(json_object_get(json_array_get(template, i), "name"));
        if (name && strcmp(name, "default") == 0)
            text = json_string_value(json_object_get(json_array_get(template, i), "template"));
    }
    QL_TRY(load_file(f, "chat_template.jinja", arena, &path, &own, &size));
    if (own && !scan_is_text(own, size)) return ql_fail(QL_FORMAT, "%s: not UTF-8", path);
    if (own) text = own;
    return text ? gguf_put_string(meta, "tokenizer.chat_template", text) : QL_OK;
}

/* ---- the whole ------------------------------------------------------------------------------------------------------------------- */

static ql_status take_vocabulary(int64_t count, ql_arena *arena, vocabulary *v) {
    *v = (vocabulary){.count = count};
    QL_TRY(ql_take(arena, (size_t)count, sizeof *v->text, &v->text));
    QL_TRY(ql_take(arena, (size_t)count, sizeof *v->score, &v->score));
    QL_TRY(ql_take(arena, (size_t)count, sizeof *v->kind, &v->kind));
    for (int64_t i = 0; i < count; i++) {
        char *text;
        QL_TRY(ql_arena_format(arena, &text, "[PAD%lld]", (long long)i));
        QL_TRY(vocabulary_set(v, "", i, text, UNUSED_SCORE, TOKEN_UNUSED));
    }
    return QL_OK;
}

static ql_status read_vocabulary(files *f, ql_arena *arena, vocabulary *v) {
    char *path, *data;
    size_t size;
    QL_TRY(load_json(f, "tokenizer.json", arena, &f->json_path, &f->tokenizer));
    QL_TRY(load_json(f, "tokenizer_config.json", arena, &path, &f->config));
    QL_TRY(load_json(f, "added_tokens.json", arena, &path, &f->added));
    QL_TRY(load_file(f, "tokenizer.model", arena, &f->spm_path, &data, &size));
    if (data) QL_TRY(vocabulary_from_spm(f->spm_path, (const uint8_t *)data, size, arena, v));
    else if (f->tokenizer) QL_TRY(vocabulary_from_json(f->json_path, f->tokenizer, arena, v));
    else
        return ql_fail(QL_MISSING, "%s: no tokenizer.json and no tokenizer.model, which GGUF needs",
                       checkpoint_dir(f->ck));
    return add_tokens(f, f->json_path, v, arena);
}

static ql_status put_vocabulary(const vocabulary *v, gguf_meta *meta) {
    uint64_t count = (uint64_t)v->count;
    QL_TRY(gguf_put_string(meta, "tokenizer.ggml.model", v->model));
    QL_TRY(gguf_put_string(meta, "tokenizer.ggml.pre", v->pre));
    QL_TRY(gguf_put_array(meta, "tokenizer.ggml.tokens", GGUF_STRING, v->text, count));
    if (v->scored) QL_TRY(gguf_put_array(meta, "tokenizer.ggml.scores", GGUF_F32, v->score, count));
    QL_TRY(gguf_put_array(meta, "tokenizer.ggml.token_type", GGUF_I32, v->kind, count));
    if (!v->merges) return QL_OK;
    return gguf_put_array(meta, "tokenizer.ggml.merges", GGUF_STRING, v->merges, (uint64_t)v->merge_count);
}

static ql_status put_tokenizer(files *f, int64_t count, ql_arena *arena, gguf_meta *meta) {
    vocabulary v;
    QL_TRY(take_vocabulary(count, arena, &v));
    QL_TRY(read_vocabulary(f, arena, &v));
    QL_TRY(put_vocabulary(&v, meta));
    QL_TRY(put_special(f, &v, meta));
    QL_TRY(put_flag(f, "add_bos_token", "tokenizer.ggml.add_bos_token", meta));
    QL_TRY(put_flag(f, "add_eos_token", "tokenizer.ggml.add_eos_token", meta));
    if (strcmp(v.model, "llama") == 0) QL_TRY(put_flag(f, "add_prefix_space", "tokenizer.ggml.add_space_prefix", meta));
    return put_template(f, arena, meta);
}

ql_status gguf_tokenizer(const checkpoint *ck, int64_t vocab, gguf_meta *meta) {
    ql_arena *arena;
    files f = {.ck = ck};
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = put_tokenizer(&f, vocab, arena, meta);
    json_decref(f.tokenizer), json_decref(f.config), json_decref(f.added);
    ql_arena_close(arena);
    return status;
}
