/* Any bytes as a token file.  The child that parses it may die; what the parent accepts must hold together. */
#include "formats/tokens.h"
#include "tests/fuzz/input.h"

static void check(const token_file *tokens) {
    require(tokens->start[0] == 0 && tokens->start[tokens->n_seq] == tokens->n_tokens);
    for (int64_t row = 0; row < tokens->n_seq; row++)
        require(tokens->start[row + 1] - tokens->start[row] <= tokens->seq_len);
    for (int64_t i = 0; i < tokens->n_tokens; i++) require(tokens->ids[i] >= 0 && tokens->ids[i] < tokens->vocab);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *path = input_file(data, size);
    ql_arena *arena;
    token_file tokens;
    if (!path || ql_arena_open(NULL, &arena) != QL_OK) return 0;
    if (tokens_read(path, arena, &tokens) == QL_OK) check(&tokens);
    ql_arena_close(arena);
    return 0;
}
