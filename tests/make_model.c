/* make_model DIR [--layers N] [--hidden N] [--intermediate N] [--vocab N] [--tokens FILE] [--rows N] [--seqlen N] [--shards N]
 * [--last-in ROW] [--claim LENGTH]: a random model and tokens for it, tiny unless told otherwise, for end-to-end tests; a tokenizer.json that is
 * there already is the one of the tokens.  --last-in: the last id of the vocabulary occurs once, at the start of ROW.  --claim: row 2 says that it has LENGTH tokens.  Heads are 64 wide from hidden 256 on, four times as many for
 * queries as for keys. */
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/tokens.h"
#include "host/rng.h"
#include "tests/make.h"

static void need(ql_status status) {
    if (status == QL_OK) return;
    fprintf(stderr, "make_model: %s\n", ql_last_error());
    exit(1);
}

static void make_tokens(const char *path, const char *model_dir, int64_t rows, int64_t seq_len, int64_t vocab,
                        int64_t last_in) {
    token_file t = {.n_seq = rows, .seq_len = seq_len, .vocab = vocab, .n_tokens = rows * seq_len};
    t.ids = calloc((size_t)t.n_tokens, sizeof *t.ids);
    t.start = calloc((size_t)rows + 1, sizeof *t.start);
    uint64_t choices = (uint64_t)(last_in < 0 ? vocab : vocab - 1);
    for (int64_t i = 0; i < t.n_tokens; i++) t.ids[i] = (int32_t)(ql_random(7, (uint64_t)i) % choices);
    if (last_in >= 0) t.ids[last_in * seq_len] = (int32_t)(vocab - 1);
    for (int64_t r = 0; r <= rows; r++) t.start[r] = r * seq_len;
    need(tokens_tokenizer_sha256(model_dir, t.tokenizer_sha256));
    need(tokens_write(path, &t, "random", 7));
    free(t.ids);
    free(t.start);
}

/* Row `row` claims `length` tokens, in a file as another program would write it: without our digest. */
static void claim_length(const char *path, int64_t row, int64_t length) {
    hsize_t start = (hsize_t)row, count = 1;
    hid_t file = H5Fopen(path, H5F_ACC_RDWR, H5P_DEFAULT), dataset = H5Dopen2(file, "length", H5P_DEFAULT);
    hid_t space = H5Dget_space(dataset), one = H5Screate_simple(1, &count, NULL);
    int32_t value = (int32_t)length;
    if (H5Adelete(file, "content_sha256") < 0 ||
        H5Sselect_hyperslab(space, H5S_SELECT_SET, &start, NULL, &count, NULL) < 0 ||
        H5Dwrite(dataset, H5T_NATIVE_INT32, one, space, H5P_DEFAULT, &value) < 0)
        need(ql_fail(QL_IO, "%s: length cannot be written", path));
    H5Sclose(one), H5Sclose(space), H5Dclose(dataset), H5Fclose(file);
}

int main(int argc, char **argv) {
    if (argc < 2) return 64;
    make_model m = make_tiny(ARCH_LLAMA);
    const char *tokens = NULL;
    int64_t rows = 16, seq_len = 64, shards = m.shards, last_in = -1, claim = 0;
    const struct {
        const char *name;
        int64_t *value;
    } numbers[] = {
        {"--layers", &m.layers}, {"--hidden", &m.hidden}, {"--intermediate", &m.intermediate},
        {"--vocab", &m.vocab},   {"--rows", &rows},       {"--seqlen", &seq_len},
        {"--shards", &shards},   {"--last-in", &last_in}, {"--claim", &claim},
    };
    for (int i = 2; i + 1 < argc; i += 2) {
        if (strcmp(argv[i], "--tokens") == 0) tokens = argv[i + 1];
        for (size_t n = 0; n < sizeof numbers / sizeof *numbers; n++)
            if (strcmp(argv[i], numbers[n].name) == 0) *numbers[n].value = atoll(argv[i + 1]);
    }
    if (m.hidden >= 256) m.head_dim = 64, m.heads = m.hidden / 64, m.kv_heads = m.heads / 4;
    if (m.max_position < seq_len) m.max_position = seq_len;
    m.shards = (int)shards;
    need(ql_dir_make(argv[1]));
    need(make_checkpoint(argv[1], &m));
    if (tokens) make_tokens(tokens, argv[1], rows, seq_len, m.vocab, last_in);
    if (tokens && claim) claim_length(tokens, 2, claim);
    return 0;
}
