/* A model as one GGUF file: which tensors it has, under which names and in which types, their bytes, and back.
 *
 *   gguf_plan plan;
 *   QL_TRY(gguf_plan_make(config, gguf_mix_of("Q4_K_M"), importance != NULL, arena, &plan));   // refuses what llama.cpp could not run
 *   QL_TRY(gguf_model_meta(config, mix, name, &meta));
 *   QL_TRY(gguf_tokenizer(ck, config->vocab, &meta));
 *   QL_TRY(gguf_save(path, &plan, &meta, &source, sha256));                // asks the source for one tensor at a time
 *
 * llama.cpp pairs neighbours in its rotary embedding of the llama architecture, Hugging Face pairs halves: rows of q and k move,
 * new[2 i + p] = old[p d / 2 + i] in every head of size d.  Columns stay, so statistics of inputs need nothing.
 */
#ifndef FORMATS_LAYOUT_GGUF_H
#define FORMATS_LAYOUT_GGUF_H

#include "formats/checkpoint.h"
#include "formats/gguf.h"
#include "formats/imatrix.h"
#include "formats/model_config.h"

/* The kinds of file that people ask for: name, general.file_type, what most weights become (number of a gguf_type). */
#define GGUF_MIXES(X)                                                                                                  \
    X(MIX_F16, "F16", 1, 1)                                                                                            \
    X(MIX_BF16, "BF16", 32, 30)                                                                                        \
    X(MIX_Q4_0, "Q4_0", 2, 2)                                                                                          \
    X(MIX_Q4_1, "Q4_1", 3, 3)                                                                                          \
    X(MIX_Q5_0, "Q5_0", 8, 6)                                                                                          \
    X(MIX_Q5_1, "Q5_1", 9, 7)                                                                                          \
    X(MIX_Q8_0, "Q8_0", 7, 8)                                                                                          \
    X(MIX_Q2_K, "Q2_K", 10, 10)                                                                                        \
    X(MIX_Q3_K_S, "Q3_K_S", 11, 11)                                                                                    \
    X(MIX_Q3_K_M, "Q3_K_M", 12, 11)                                                                                    \
    X(MIX_Q3_K_L, "Q3_K_L", 13, 11)                                                                                    \
    X(MIX_Q4_K_S, "Q4_K_S", 14, 12)                                                                                    \
    X(MIX_Q4_K_M, "Q4_K_M", 15, 12)                                                                                    \
    X(MIX_Q5_K_S, "Q5_K_S", 16, 13)                                                                                    \
    X(MIX_Q5_K_M, "Q5_K_M", 17, 13)                                                                                    \
    X(MIX_Q6_K, "Q6_K", 18, 14)                                                                                        \
    X(MIX_IQ4_NL, "IQ4_NL", 25, 20)

typedef enum gguf_mix {
#define GGUF_MIX_ENUM(id, name, file_type, number) id,
    GGUF_MIXES(GGUF_MIX_ENUM)
#undef GGUF_MIX_ENUM
        GGUF_MIX_COUNT
} gguf_mix;

const char *gguf_mix_name(gguf_mix mix);
int gguf_mix_file_type(gguf_mix mix);
gguf_mix gguf_mix_of(const char *name);       /* GGUF_MIX_COUNT: none */
const gguf_type *gguf_mix_type(gguf_mix mix); /* of most weights */
/* Does a file of this kind depend on how much each input counts? */
bool gguf_mix_reads_importance(gguf_mix mix);

int gguf_bits(const gguf_type *type);      /* of a code, scales not counted */
int64_t gguf_group(const gguf_type *type); /* weights that share a scale; 1: every one stands for itself */

/* One tensor of the file and where it comes from. */
typedef struct gguf_entry {
    gguf_tensor tensor;
    const char *source; /* name in the checkpoint; NULL: the factors of the rotary embedding */
    int64_t n, k;       /* of the source; n = 1 for vectors */
    int64_t heads;      /* whose rows move; 0: none do */
    bool fallback;      /* the rows are too short or odd for the type of the mix */
} gguf_entry;

typedef struct gguf_plan {
    const model_config *config;
    gguf_mix mix;
    gguf_entry *entries;
    gguf_tensor *tensors; /* the same, as a writer wants them */
    int64_t count;
} gguf_plan;

/* What llama.cpp could not compute from a file of this model: a sentence, or NULL. */
const char *gguf_obstacle(const model_config *config);

/* important: there are weights of the importance of inputs; ggml then chooses other types here and there.
 * QL_MISMATCH with the obstacle. */
ql_status gguf_plan_make(const model_config *config, gguf_mix mix, bool important, ql_arena *arena, gguf_plan *out);

/* Is it a linear of a layer? */
bool gguf_is_linear(const gguf_entry *entry);

/* The name of a tensor of the checkpoint in GGUF; false if it has none. */
bool gguf_tensor_name(const char *source, char name[GGUF_NAME_SIZE]);

const char *gguf_architecture(arch which); /* "llama", also of mistral */

/* Architecture, sizes, rotary embedding, kind of file. */
ql_status gguf_model_meta(const model_config *config, gguf_mix mix, const char *name, gguf_meta *meta);
/* The factors that divide the frequencies of a llama3 embedding, [head_dim / 2]. */
void gguf_rope_factors(const model_config *config, float *factors);

/* Vocabulary, scores, kinds of tokens, merges, special tokens, chat template, from the files beside the checkpoint.
 * QL_MISMATCH for a tokenizer that llama.cpp does not know under a name that can be told from the files. */
ql_status gguf_tokenizer(const checkpoint *ck, int64_t vocab, gguf_meta *meta);

/* Where values come from: w [n][k] of the entry, F32, rows in the order of the checkpoint. */
typedef struct gguf_source {
    ql_status (*values)(void *user, const gguf_entry *entry, float *w);
    void *user;
    ql_ctx *ctx;            /* encodes; its memory is the host's */
    const imatrix *weights; /* or NULL */
    /* Bytes that were made before, [n][gguf_row_bytes], rows in the order of the checkpoint, good until the next call; *bytes stays NULL
     * where values are to be encoded.  May be NULL. */
    ql_status (*encoded)(void *user, const gguf_entry *entry, void **bytes);
} gguf_source;

/* Has every linear its entry of the right width, and does every entry belong to this model?  QL_MISMATCH. */
ql_status gguf_check_importance(const gguf_plan *plan, const imatrix *matrix);
/* A file that was made with it has this key: how many weights. */
#define GGUF_IMPORTANCE_KEY "quantize.imatrix.entries_count"

ql_status gguf_values_of_checkpoint(void *checkpoint, const gguf_entry *entry, float *w);

/* Could gguf_save write all but the linears of the layers?  QL_FORMAT or QL_MISMATCH as there; writes nothing. */
ql_status gguf_check_rest(const gguf_plan *plan, const gguf_source *source);
/* QL_MISMATCH if a scale of rows that were just encoded is beyond F16.   bytes [n][gguf_row_bytes] */
ql_status gguf_check_encoded(const gguf_type *type, const char *name, const void *bytes, int64_t n, int64_t k);

/* Every tensor of the plan into one file.  QL_FORMAT for values that are not finite, QL_MISMATCH for values whose scale does not fit
 * into binary16; the sentence names the tensor. */
ql_status gguf_save(const char *path, const gguf_plan *plan, const gguf_meta *meta, const gguf_source *source,
                    unsigned char sha256[32]);

/* A tensor as F32, rows in the order of the checkpoint (heads as in the entry).   w [elements].  QL_MISMATCH for a type that
 * qalib does not decode. */
ql_status gguf_decode(ql_ctx *ctx, const gguf_file *file, const gguf_tensor *tensor, int64_t heads, float *w);

/* Is this tensor in the file as the plan has it, finite, and as near to the source as its type can be (gguf_most_error)?  QL_FORMAT
 * says what is wrong.  source->values NULL: there is nothing to compare with.  error: difference over norm, 0 without. */
ql_status gguf_verify_tensor(const gguf_file *file, const gguf_plan *plan, const gguf_source *source,
                             const gguf_entry *entry, double *error);
double gguf_most_error(const gguf_type *type);

/* config.json as it follows from the metadata (json_decref). */
ql_status gguf_config(const gguf_file *file, json_t **config);

#endif
