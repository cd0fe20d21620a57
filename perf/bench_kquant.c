/* The encoder of GGUF blocks beside that of ggml, same weights, same threads, same run, bytes compared.
 *
 *   build/bench_kquant LIBGGML [threads] [rows] [repeats]        for instance build/bin/libggml-base.so of llama.cpp, 2 256 9
 *
 * Rows of 4096 normal values, with and without importance.  Both encode the same rows in turns; processor time, so that other programs on the
 * machine disturb little (with several threads also OMP_WAIT_POLICY=passive); medians of each and of the ratio of neighbours.  ggml's threads get equal pieces of the rows, as
 * llama-quantize gives them.
 */
#include <dlfcn.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "host/mat.h"
#include "host/qalib.h"
#include "host/rng.h"
#include "perf/bench.h"

enum { K = 4096, MOST_REPEATS = 99 };

/* ggml_quantize_chunk of ggml.h. */
typedef size_t ggml_chunk(int type, const float *src, void *dst, int64_t start, int64_t n_rows, int64_t n_per_row,
                          const float *imatrix);
typedef void ggml_start(int type);

typedef struct bench {
    ql_ctx *ctx;
    ggml_chunk *chunk;
    int threads, repeats;
    int64_t rows;
    float *w, *importance;
    uint8_t *ours, *theirs;
} bench;

static double processor_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double run_ours(const bench *b, ql_block_type type, const float *importance) {
    ql_mat weights = importance ? ql_mat_of(b->importance, QL_F32, 1, K) : ql_no_mat();
    double begin = processor_seconds();
    need(ql_encode_blocks(b->ctx, ql_mat_of(b->w, QL_F32, b->rows, K), weights, type,
                          ql_mat_of(b->ours, QL_U8, b->rows, K / ql_block_weights(type) * ql_block_bytes(type))));
    return processor_seconds() - begin;
}

static double run_theirs(const bench *b, int number, const float *importance) {
    double begin = processor_seconds();
#pragma omp parallel num_threads(b->threads)
    {
        int64_t piece = ql_ceil_div(b->rows, b->threads), first = piece * omp_get_thread_num();
        int64_t rows = ql_at_most(piece, b->rows - first);
        if (rows > 0) b->chunk(number, b->w, b->theirs, first * K, rows, K, importance);
    }
    return processor_seconds() - begin;
}

static void compare(const bench *b, ql_block_type type, int number, const float *importance) {
    double ours[MOST_REPEATS], theirs[MOST_REPEATS], ratio[MOST_REPEATS];
    size_t row = (size_t)(K / ql_block_weights(type) * ql_block_bytes(type));
    int64_t same = 0;
    for (int i = -1; i < b->repeats; i++) {
        double mine = run_ours(b, type, importance), other = run_theirs(b, number, importance);
        if (i < 0) continue; /* memory was not warm */
        ours[i] = mine, theirs[i] = other, ratio[i] = other / mine;
    }
    for (int64_t r = 0; r < b->rows; r++)
        same += memcmp(b->ours + (size_t)r * row, b->theirs + (size_t)r * row, row) == 0;
    double weights = (double)b->rows * K * 1e-6;
    printf("%-7s %-10s %8.2f %8.2f %6.2f   %6.2f %%\n", ql_block_name(type), importance ? "importance" : "",
           weights / median(ours, b->repeats), weights / median(theirs, b->repeats), median(ratio, b->repeats),
           100.0 * (double)same / (double)b->rows);
}

static void make_values(bench *b) {
    size_t weights = (size_t)b->rows * K;
    b->w = malloc(weights * sizeof *b->w), b->importance = malloc(K * sizeof(float));
    b->ours = malloc(weights * 2), b->theirs = malloc(weights * 2);
    if (!b->w || !b->importance || !b->ours || !b->theirs) need(ql_fail(QL_NOMEM, "no memory for the weights"));
    for (size_t i = 0; i < weights; i++) {
        double sum = -6;
        for (uint64_t part = 0; part < 12; part++) sum += (double)(ql_random(part, i) >> 11) * 0x1p-53;
        b->w[i] = (float)(0.02 * sum);
    }
    for (size_t i = 0; i < K; i++) b->importance[i] = (float)exp((double)(ql_random(99, i) >> 11) * 0x1p-53 * 4);
}

int main(int argc, char **argv) {
    bench b = {.threads = argc > 2 ? atoi(argv[2]) : 1,
               .rows = argc > 3 ? atoi(argv[3]) : 256,
               .repeats = argc > 4 ? atoi(argv[4]) : 9};
    void *library = argc > 1 ? dlopen(argv[1], RTLD_LAZY) : NULL;
    if (library) {
        *(void **)&b.chunk = dlsym(library, "ggml_quantize_chunk");
        ggml_start *start;
        *(void **)&start = dlsym(library, "ggml_quantize_init");
        for (int type = 0; start && type < 21; type++) start(type);
    }
    if (!b.chunk || b.threads < 1 || b.rows < 1 || b.repeats < 1 || b.repeats > MOST_REPEATS) {
        fprintf(stderr, "usage: bench_kquant LIBGGML [threads] [rows] [repeats]%s%s\n", argc > 1 ? ": " : "",
                argc > 1 && !b.chunk ? dlerror() : "");
        return 64;
    }
    need(ql_ctx_open("cpu", b.threads, &b.ctx));
    make_values(&b);
    printf("%-18s %8s %8s %6s   %s\n", "Mweights per s", "ours", "ggml", "ratio", "rows alike");
#define BOTH(id, text, number, weights, bytes)                                                                         \
    compare(&b, id, number, NULL);                                                                                     \
    compare(&b, id, number, b.importance);
    QL_BLOCK_TYPES(BOTH)
#undef BOTH
    ql_ctx_close(b.ctx);
    return 0;
}
