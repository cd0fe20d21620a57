/* A vocabulary on its way into GGUF: formats/gguf_spm.c reads it from tokenizer.model, formats/gguf_bpe.c from tokenizer.json, and
 * formats/gguf_tokenizer.c adds what the other files say. */
#ifndef FORMATS_GGUF_TOKENIZER_H
#define FORMATS_GGUF_TOKENIZER_H

#include "formats/json.h"

/* What llama.cpp calls the kinds of tokens. */
typedef enum token_kind {
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN,
    TOKEN_CONTROL,
    TOKEN_USER,
    TOKEN_UNUSED,
    TOKEN_BYTE
} token_kind;

typedef struct vocabulary {
    const char *model, *pre; /* "llama" or "gpt2"; "default", "llama-bpe", ... */
    int64_t count;           /* rows of the embedding */
    const char **text;       /* [count], UTF-8 */
    float *score;
    int32_t *kind;
    const char **merges; /* "left right"; gpt2 alone */
    int64_t merge_count;
    bool scored; /* scores mean something */
} vocabulary;

/* Sets token `id`; QL_FORMAT if it is not below the number of rows. */
ql_status vocabulary_set(vocabulary *v, const char *place, int64_t id, const char *text, float score, token_kind kind);
/* SentencePiece's protobuf, all of it. */
ql_status vocabulary_from_spm(const char *place, const uint8_t *data, size_t size, ql_arena *arena, vocabulary *v);
/* "model" and "pre_tokenizer" of tokenizer.json. */
ql_status vocabulary_from_json(const char *place, const json_t *tokenizer, ql_arena *arena, vocabulary *v);

#endif
