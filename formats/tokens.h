/* Token files (HDF5), the only form in which text enters the C core.
 *
 *   / attributes   format = "calib-tokens", version = 1, tokenizer_sha256 (lower-case hex, may be empty), vocab_size, seq_len,
 *                  source, seed, complete = 1
 *   /input_ids     I32 [n_seq][seq_len], padding -1
 *   /length        I32 [n_seq], valid tokens of each row
 *   /doc_id        I64 [n_seq], optional
 */
#ifndef FORMATS_TOKENS_H
#define FORMATS_TOKENS_H

#include "host/mem.h"

typedef struct token_file {
    int64_t n_seq, seq_len, vocab;
    int64_t n_tokens; /* valid ones */
    int32_t *ids;     /* all valid tokens, row after row, no padding */
    int64_t *start;   /* [n_seq + 1]: row s holds ids[start[s]] .. ids[start[s+1] - 1] */
    char tokenizer_sha256[65];
    char sha256[65]; /* of the file */
} token_file;

/* Checks everything: ids in 0 .. vocab-1, lengths, padding, filters, and against HDF5 tricks (external storage and links,
 * virtual datasets, foreign filters, shapes larger than the file could hold).  QL_FORMAT names the row. */
ql_status tokens_read(const char *path, ql_arena *arena, token_file *out);

/* For scripts and tests: writes rows of `ids` (start as above) with padding to seq_len. */
ql_status tokens_write(const char *path, const token_file *tokens, const char *source, int64_t seed);

/* SHA-256 of tokenizer.json, else of tokenizer.model, in hex; "" if the directory has neither. */
ql_status tokens_tokenizer_sha256(const char *model_dir, char hex[65]);

/* Compares with a model directory: vocab of the model, tokenizer hash (tokenizer.json, else tokenizer.model).  A different hash
 * is QL_FORMAT; an empty one or a model without tokenizer is one warning. */
ql_status tokens_check_model(const token_file *tokens, const char *path, const char *model_dir, int64_t model_vocab);

#endif
