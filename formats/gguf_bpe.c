/* tokenizer.json: byte-pair encoding, over bytes in GPT-2's alphabet or over characters with a fallback to bytes.
 *
 * The second kind is SentencePiece's in another coat: llama.cpp then picks the pair of the highest score where Hugging Face takes the
 * merge of the lowest rank, so a token's score is its rank, negated. */
#include <stdlib.h>
#include <string.h>

#include "formats/gguf_tokenizer.h"

/* How llama.cpp calls the patterns that split a text.  A name for a pattern that is merely alike would cut words elsewhere. */
#define WORDS "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|"
#define REST "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
static const struct {
    const char *pattern, *name;
} patterns[] = {
    {WORDS "\\p{N}{1,3}" REST, "llama-bpe"},
    {WORDS "\\p{N}" REST, "qwen2"},
    {"'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+", "gpt-2"},
};

static const char *string_of(const json_t *object, const char *key) {
    return json_string_value(json_object_get(object, key));
}

/* The parts of a pre-tokenizer: itself, or those of a sequence. */
static size_t part_count(const json_t *pre) {
    const json_t *parts = json_object_get(pre, "pretokenizers");
    return parts ? json_array_size(parts) : 1;
}
static const json_t *part_of(const json_t *pre, size_t i) {
    const json_t *parts = json_object_get(pre, "pretokenizers");
    return parts ? json_array_get(parts, i) : pre;
}

static ql_status find_pattern(const char *place, const json_t *pre, const char **name) {
    const char *pattern = NULL;
    for (size_t i = 0; i < part_count(pre); i++) {
        const json_t *part = part_of(pre, i);
        const char *type = string_of(part, "type"), *regex = string_of(json_object_get(part, "pattern"), "Regex");
        if (type && strcmp(type, "Split") == 0) pattern = regex ? regex : "a fixed text";
        bool own = !json_is_false(json_object_get(part, "use_regex"));
        if (type && strcmp(type, "ByteLevel") == 0 && own && !pattern) pattern = patterns[2].pattern;
    }
    for (size_t i = 0; pattern && i < sizeof patterns / sizeof *patterns; i++)
        if (strcmp(pattern, patterns[i].pattern) == 0) {
            *name = patterns[i].name;
            return QL_OK;
        }
    return ql_fail(QL_MISMATCH, "%s: llama.cpp has no name that qalib knows for texts split by \"%.200s\"", place,
                   pattern ? pattern : "nothing");
}

static ql_status read_tokens(const char *place, const json_t *tokens, vocabulary *v) {
    const char *text;
    json_t *id;
    json_object_foreach((json_t *)tokens, text, id) {
        if (!json_is_integer(id)) return ql_fail(QL_FORMAT, "%s: the id of \"%.100s\" is no integer", place, text);
        QL_TRY(vocabulary_set(v, place, json_integer_value(id), text, 0, TOKEN_NORMAL));
    }
    return QL_OK;
}

/* Spaces inside of a token would end it: they are written as the alphabet writes them. */
static size_t append(char *to, const char *text) {
    size_t size = 0;
    for (; *text; text++)
        if (*text == ' ') to[size++] = (char)0xc4, to[size++] = (char)0xa0; /* U+0120 */
        else to[size++] = *text;
    return size;
}

/* "left right", or ["left", "right"]. */
static ql_status read_merge(const char *place, const json_t *merge, ql_arena *arena, const char **out) {
    const char *left = json_string_value(json_array_get(merge, 0)),
               *right = json_string_value(json_array_get(merge, 1));
    char *text;
    if (json_is_string(merge)) {
        QL_TRY(ql_arena_string(arena, json_string_value(merge), &text));
        *out = text;
        return strchr(text, ' ') ? QL_OK : ql_fail(QL_FORMAT, "%s: a merge without a space: \"%.100s\"", place, text);
    }
    if (!left || !right) return ql_fail(QL_FORMAT, "%s: a merge is no pair of strings", place);
    QL_TRY(ql_take(arena, 2 * (strlen(left) + strlen(right)) + 2, 1, &text));
    size_t size = append(text, left);
    text[size++] = ' ';
    append(text + size, right);
    *out = text;
    return QL_OK;
}

static ql_status read_merges(const char *place, const json_t *merges, ql_arena *arena, vocabulary *v) {
    if (!json_is_array(merges))
        return ql_fail(QL_FORMAT, "%s: \"merges\" is %s, expected an array", place, ql_json_type_name(merges));
    v->merge_count = (int64_t)json_array_size(merges);
    QL_TRY(ql_take(arena, (size_t)v->merge_count, sizeof *v->merges, &v->merges));
    for (int64_t i = 0; i < v->merge_count; i++)
        QL_TRY(read_merge(place, json_array_get(merges, (size_t)i), arena, &v->merges[i]));
    return QL_OK;
}

/* The score of a token: of the first merge that makes it, rank negated. */
static ql_status score_by_rank(const char *place, const json_t *tokens, ql_arena *arena, vocabulary *v) {
    for (int64_t i = 0; i < v->count; i++) v->score[i] = -(float)v->merge_count - 1;
    for (int64_t rank = v->merge_count; rank-- > 0;) {
        const char *merge = v->merges[rank], *space = strchr(merge, ' ');
        char *token;
        QL_TRY(ql_arena_format(arena, &token, "%.*s%s", (int)(space - merge), merge, space + 1));
        const json_t *id = json_object_get(tokens, token);
        if (!id)
            return ql_fail(QL_FORMAT, "%s: merge %lld makes \"%.100s\", which is no token", place, (long long)rank,
                           token);
        v->score[json_integer_value(id)] = -(float)rank;
    }
    v->merges = NULL, v->merge_count = 0;
    return QL_OK;
}

static void mark_bytes(vocabulary *v, const char *unknown) {
    for (int64_t i = 0; i < v->count; i++) {
        unsigned byte;
        int used = 0;
        if (sscanf(v->text[i], "<0x%2X>%n", &byte, &used) == 1 && used == 6 && !v->text[i][6]) v->kind[i] = TOKEN_BYTE;
        if (unknown && strcmp(v->text[i], unknown) == 0) v->kind[i] = TOKEN_UNKNOWN;
    }
}

ql_status vocabulary_from_json(const char *place, const json_t *tokenizer, ql_arena *arena, vocabulary *v) {
    const json_t *model = json_object_get(tokenizer, "model"), *tokens = json_object_get(model, "vocab");
    const char *type = string_of(model, "type");
    if (type && strcmp(type, "BPE") != 0)
        return ql_fail(QL_MISMATCH, "%s: a tokenizer of type %.50s, GGUF is written for BPE and SentencePiece", place,
                       type);
    if (!json_is_object(tokens))
        return ql_fail(QL_FORMAT, "%s: \"vocab\" is %s, expected an object", place, ql_json_type_name(tokens));
    QL_TRY(read_tokens(place, tokens, v));
    QL_TRY(read_merges(place, json_object_get(model, "merges"), arena, v));
    if (!json_is_true(json_object_get(model, "byte_fallback"))) {
        v->model = "gpt2";
        return find_pattern(place, json_object_get(tokenizer, "pre_tokenizer"), &v->pre);
    }
    v->model = "llama", v->pre = "default", v->scored = true;
    QL_TRY(score_by_rank(place, tokens, arena, v));
    mark_bytes(v, string_of(model, "unk_token"));
    return QL_OK;
}
