#include "formats/tokens.h"

#include <stdio.h>
#include <string.h>

#include "formats/h5.h"
#include "host/file.h"
#include "host/log.h"

/* The file as a table. */
enum { HASH, VOCAB, SEQ_LEN, SOURCE, SEED, IDS, LENGTH, ITEMS };

static void describe(h5_item items[ITEMS]) {
    static const h5_item table[ITEMS] = {
        [HASH] = {.kind = H5_TEXT, .group = "/", .name = "tokenizer_sha256"},
        [VOCAB] = {.kind = H5_INT, .group = "/", .name = "vocab_size", .least = 1, .most = INT32_MAX},
        [SEQ_LEN] = {.kind = H5_INT, .group = "/", .name = "seq_len", .least = 1, .most = INT32_MAX},
        [SOURCE] = {.kind = H5_TEXT, .group = "/", .name = "source", .optional = true},
        [SEED] = {.kind = H5_INT, .group = "/", .name = "seed", .optional = true, .most = INT64_MAX},
        [IDS] = {.kind = H5_ARRAY,
                 .group = "/",
                 .name = "input_ids",
                 .dtype = QL_I32,
                 .rank = 2,
                 .dims = {-1, -1},
                 .extendable = true},
        [LENGTH] = {.kind = H5_ARRAY,
                    .group = "/",
                    .name = "length",
                    .dtype = QL_I32,
                    .rank = 1,
                    .dims = {-1, 1},
                    .extendable = true},
    };
    memcpy(items, table, sizeof table);
}

/* ---- reading ------------------------------------------------------------------------------------------------------------- */

static ql_status check_hash(const char *path, const char *hash) {
    size_t length = strlen(hash);
    if ((length == 0 || length == 64) && strspn(hash, "0123456789abcdef") == length) return QL_OK;
    return ql_fail(QL_FORMAT, "%s: tokenizer_sha256 \"%.80s\" is not 64 lower-case hex digits", path, hash);
}

static ql_status check_row(const char *path, int64_t row, const int32_t *ids, int32_t length, int64_t seq_len,
                           int64_t vocab) {
    if (length < 1 || length > seq_len)
        return ql_fail(QL_FORMAT, "%s: row %lld has length %d, allowed are 1 to %lld", path, (long long)row, length,
                       (long long)seq_len);
    for (int64_t i = 0; i < length; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return ql_fail(QL_FORMAT, "%s: row %lld, position %lld: token %d is not in the vocabulary of %lld", path,
                           (long long)row, (long long)i, ids[i], (long long)vocab);
    for (int64_t i = length; i < seq_len; i++)
        if (ids[i] != -1)
            return ql_fail(QL_FORMAT, "%s: row %lld, position %lld: padding is %d, not -1", path, (long long)row,
                           (long long)i, ids[i]);
    return QL_OK;
}

static ql_status check_shapes(const char *path, const h5_item items[ITEMS]) {
    const int64_t *dims = items[IDS].dims;
    if (dims[0] == 0) return ql_fail(QL_FORMAT, "%s: no rows", path);
    if (dims[1] != items[SEQ_LEN].value)
        return ql_fail(QL_FORMAT, "%s: rows of %lld tokens, but seq_len is %lld", path, (long long)dims[1],
                       (long long)items[SEQ_LEN].value);
    if (items[LENGTH].dims[0] != dims[0])
        return ql_fail(QL_FORMAT, "%s: %lld rows, but %lld lengths", path, (long long)dims[0],
                       (long long)items[LENGTH].dims[0]);
    return check_hash(path, items[HASH].text);
}

/* Rows without their padding, one after the other. */
static ql_status gather(const char *path, const h5_item items[ITEMS], ql_arena *arena, token_file *out) {
    const int32_t *ids = items[IDS].data, *length = items[LENGTH].data;
    QL_TRY(ql_take(arena, (size_t)out->n_seq + 1, sizeof *out->start, &out->start));
    for (int64_t row = 0; row < out->n_seq; row++) {
        QL_TRY(check_row(path, row, ids + row * out->seq_len, length[row], out->seq_len, out->vocab));
        out->start[row + 1] = out->start[row] + length[row];
    }
    out->n_tokens = out->start[out->n_seq];
    if (out->n_tokens < 2) return ql_fail(QL_FORMAT, "%s: holds a single token, row 0; nothing can be predicted", path);
    QL_TRY(ql_take(arena, (size_t)out->n_tokens, sizeof *out->ids, &out->ids));
    for (int64_t row = 0; row < out->n_seq; row++)
        memcpy(out->ids + out->start[row], ids + row * out->seq_len, (size_t)length[row] * sizeof *ids);
    return QL_OK;
}

static ql_status load(const char *path, ql_arena *arena, ql_arena *scratch, token_file *out) {
    h5_item items[ITEMS];
    unsigned char sha256[32];
    describe(items);
    QL_TRY(h5_load(path, "calib-tokens", items, ITEMS, scratch));
    QL_TRY(check_shapes(path, items));
    *out = (token_file){.n_seq = items[IDS].dims[0], .seq_len = items[IDS].dims[1], .vocab = items[VOCAB].value};
    memcpy(out->tokenizer_sha256, items[HASH].text, strlen(items[HASH].text));
    QL_TRY(gather(path, items, arena, out));
    QL_TRY(ql_file_sha256(path, sha256));
    ql_hex(sha256, sizeof sha256, out->sha256);
    return QL_OK;
}

ql_status tokens_read(const char *path, ql_arena *arena, token_file *out) {
    ql_arena *scratch;
    QL_TRY(ql_arena_open(NULL, &scratch));
    ql_status status = load(path, arena, scratch, out);
    ql_arena_close(scratch);
    return status;
}

/* ---- writing ------------------------------------------------------------------------------------------------------------- */

static ql_status save(const char *path, const token_file *tokens, const char *source, int64_t seed, ql_arena *scratch) {
    int32_t *ids, *length;
    size_t elements = (size_t)(tokens->n_seq * tokens->seq_len);
    QL_TRY(ql_take(scratch, elements, sizeof *ids, &ids));
    QL_TRY(ql_take(scratch, (size_t)tokens->n_seq, sizeof *length, &length));
    memset(ids, 0xff, elements * sizeof *ids); /* -1 everywhere */
    QL_TRY(check_hash(path, tokens->tokenizer_sha256));
    for (int64_t row = 0; row < tokens->n_seq; row++) {
        int64_t count = tokens->start[row + 1] - tokens->start[row];
        length[row] = (int32_t)count;
        if (count > 0 && count <= tokens->seq_len)
            memcpy(ids + row * tokens->seq_len, tokens->ids + tokens->start[row], (size_t)count * sizeof *ids);
        QL_TRY(check_row(path, row, ids + row * tokens->seq_len, length[row], tokens->seq_len, tokens->vocab));
    }
    h5_item items[ITEMS];
    describe(items);
    items[HASH].text = tokens->tokenizer_sha256;
    items[VOCAB].value = tokens->vocab;
    items[SEQ_LEN].value = tokens->seq_len;
    items[SOURCE].text = source;
    items[SEED].value = seed;
    items[IDS].data = ids;
    items[IDS].dims[0] = items[LENGTH].dims[0] = tokens->n_seq;
    items[IDS].dims[1] = tokens->seq_len;
    items[LENGTH].data = length;
    return h5_save(path, "calib-tokens", items, ITEMS);
}

ql_status tokens_write(const char *path, const token_file *tokens, const char *source, int64_t seed) {
    if (tokens->n_seq < 1 || tokens->seq_len < 1 || tokens->seq_len > INT32_MAX || tokens->n_seq > INT32_MAX)
        return ql_fail(QL_INVALID, "%s: %lld rows of %lld tokens", path, (long long)tokens->n_seq,
                       (long long)tokens->seq_len);
    ql_arena *scratch;
    QL_TRY(ql_arena_open(NULL, &scratch));
    ql_status status = save(path, tokens, source, seed, scratch);
    ql_arena_close(scratch);
    return status;
}

/* ---- the model they are for ------------------------------------------------------------------------------------------------ */

ql_status tokens_tokenizer_sha256(const char *model_dir, char hex[65]) {
    static const char *const names[] = {"tokenizer.json", "tokenizer.model"};
    char path[4096];
    unsigned char sha256[32];
    hex[0] = 0;
    for (int i = 0; i < 2 && hex[0] == 0; i++) {
        if (snprintf(path, sizeof path, "%s/%s", model_dir, names[i]) >= (int)sizeof path)
            return ql_fail(QL_DISK, "%.60s...: the path is too long", model_dir);
        if (!ql_path_exists(path)) continue;
        QL_TRY(ql_file_sha256(path, sha256));
        ql_hex(sha256, sizeof sha256, hex);
    }
    return QL_OK;
}

ql_status tokens_check_model(const token_file *tokens, const char *path, const char *model_dir, int64_t model_vocab) {
    char hex[65];
    for (int64_t row = 0; row < tokens->n_seq; row++)
        for (int64_t i = tokens->start[row]; i < tokens->start[row + 1]; i++)
            if (tokens->ids[i] >= model_vocab)
                return ql_fail(QL_FORMAT, "%s: row %lld: token %d, but %s has a vocabulary of %lld", path,
                               (long long)row, tokens->ids[i], model_dir, (long long)model_vocab);
    QL_TRY(tokens_tokenizer_sha256(model_dir, hex));
    if (hex[0] == 0 || tokens->tokenizer_sha256[0] == 0) {
        ql_log(QL_WARNING, "%s: cannot tell whether its tokenizer is the one of %s: %s", path, model_dir,
               hex[0] ? "the file has no tokenizer_sha256" : "there is no tokenizer.json or tokenizer.model");
        return QL_OK;
    }
    if (strcmp(hex, tokens->tokenizer_sha256) == 0) return QL_OK;
    return ql_fail(QL_FORMAT,
                   "%s: made with another tokenizer (sha256 %.12s..., the model has %.12s...); run qalib tokenize with "
                   "--tokenizer %s",
                   path, tokens->tokenizer_sha256, hex, model_dir);
}
