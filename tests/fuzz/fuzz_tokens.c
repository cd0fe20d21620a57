/* Any bytes as a token file.  The child that parses it may die; what the parent accepts must hold together. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "formats/tokens.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const token_file *tokens) {
    if (tokens->start[0] != 0 || tokens->start[tokens->n_seq] != tokens->n_tokens) abort();
    for (int64_t row = 0; row < tokens->n_seq; row++)
        if (tokens->start[row + 1] - tokens->start[row] > tokens->seq_len) abort();
    for (int64_t i = 0; i < tokens->n_tokens; i++)
        if (tokens->ids[i] < 0 || tokens->ids[i] >= tokens->vocab) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64];
    ql_arena *arena;
    token_file tokens;
    int fd = memfd_create("tokens", 0);
    if (fd < 0) return 0;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (write(fd, data, size) == (ssize_t)size && ql_arena_open(NULL, &arena) == QL_OK) {
        if (tokens_read(path, arena, &tokens) == QL_OK) check(&tokens);
        ql_arena_close(arena);
    }
    close(fd);
    return 0;
}
