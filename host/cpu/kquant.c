/* Block formats of GGUF: 256 weights at a time, their sub-blocks side by side in vector registers.   w [n][k]
 * The arithmetic is that of host/kquant.h. */
#include "host/kquant.h"

#include "host/ops.h"

typedef uint32_t words __attribute__((vector_size(sizeof(ql_wide)))); /* one of each lane */
static words whole(ql_wide code) { return (words) __builtin_convertvector(code, ql_wide_mask); }

enum { SUBS = QL_SUPER / 16 /* most sub-blocks of 256 weights */ };

/* 256 weights on their way to bytes: sub-block s is lane s % QL_WIDTH of column s / QL_WIDTH. */
typedef struct unit {
    ql_block_type type;
    int important, subs, n; /* sub-blocks that exist, weights of each */
    ql_wide x[QL_SUPER / QL_WIDTH], w[QL_SUPER / QL_WIDTH], codes[QL_SUPER / QL_WIDTH];
    float scale[SUBS], min[SUBS]; /* as fitted, then as the file has them */
    float weight[SUBS];
    uint8_t code[QL_SUPER], scale_code[SUBS], min_code[SUBS];
    uint16_t d, m;
} unit;

static ql_column column_of(unit *u, int pass) {
    return (ql_column){u->x + pass * u->n, u->w + pass * u->n, u->codes + pass * u->n, u->n};
}

/* Element j of vector i and element i of vector j change places: pairs at a distance of 1, 2, 4 in turn. */
static void transpose(ql_wide t[QL_WIDTH]) {
#if QL_LANES == 8
#define FIRST(d, a, b)                                                                                                 \
    (d == 1   ? __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14)                                               \
     : d == 2 ? __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13)                                                \
              : __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11))
#define SECOND(d, a, b)                                                                                                \
    (d == 1   ? __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15)                                               \
     : d == 2 ? __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15)                                              \
              : __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15))
#else
#define FIRST(d, a, b) (d == 1 ? __builtin_shufflevector(a, b, 0, 4, 2, 6) : __builtin_shufflevector(a, b, 0, 1, 4, 5))
#define SECOND(d, a, b) (d == 1 ? __builtin_shufflevector(a, b, 1, 5, 3, 7) : __builtin_shufflevector(a, b, 2, 3, 6, 7))
#endif
    for (int d = 1; d < QL_WIDTH; d *= 2)
        for (int i = 0; i < QL_WIDTH; i++) {
            if (i & d) continue;
            ql_wide a = t[i], b = t[i + d];
            t[i] = FIRST(d, a, b);
            t[i + d] = SECOND(d, a, b);
        }
#undef FIRST
#undef SECOND
}

/* QL_WIDTH sub-blocks of n values from `first` on become a column; those that do not exist are zeros. */
static void load_column(const unit *u, const float *x, int first, ql_wide *column) {
    for (int i = 0; i < u->n; i += QL_WIDTH) {
        for (int lane = 0; lane < QL_WIDTH; lane++) {
            column[i + lane] = ql_wide_of(0.0f);
            if (first + lane < u->subs) memcpy(&column[i + lane], x + (first + lane) * u->n + i, sizeof *column);
        }
        transpose(column + i);
    }
}

static void load(unit *u, const float *x, const float *importance) {
    for (int first = 0; first < u->subs; first += QL_WIDTH) {
        load_column(u, x, first, u->x + first / QL_WIDTH * u->n);
        if (importance) load_column(u, importance, first, u->w + first / QL_WIDTH * u->n);
    }
}

/* Without importance the formats without sub-blocks are rounded without a search, but for IQ4_NL. */
static int is_weighed(const unit *u) { return u->important || ql_is_super(u->type) || u->type == QL_IQ4_NL; }

static void fit(unit *u, float row_energy, float super_energy) {
    for (int pass = 0; pass * QL_WIDTH < u->subs; pass++) {
        ql_column c = column_of(u, pass);
        if (is_weighed(u))
            ql_weigh(u->type, c, u->w + pass * u->n, u->important, ql_energy(u->type, c, row_energy, super_energy));
        ql_wide min, scale = ql_fit(u->type, c, u->important, &min), weight = ql_wide_of(0.0f);
        for (int i = 0; ql_is_super(u->type) && i < c.n; i++) weight += c.w[i];
        memcpy(u->scale + pass * QL_WIDTH, &scale, sizeof scale);
        memcpy(u->min + pass * QL_WIDTH, &min, sizeof min);
        memcpy(u->weight + pass * QL_WIDTH, &weight, sizeof weight);
    }
}

/* Scales in lane 0, minimums in lane 1. */
static void fit_scales(unit *u) {
    ql_wide x[SUBS] = {0}, w[SUBS] = {0}, code[SUBS];
    for (int s = 0; s < u->subs; s++) {
        x[s][0] = u->scale[s], x[s][1] = -u->min[s];
        w[s][0] = w[s][1] = u->weight[s];
    }
    ql_wide worth = ql_fit_scales(u->type, (ql_column){x, w, code, u->subs}, u->important);
    u->d = ql_f32_to_f16(worth[0]), u->m = ql_f32_to_f16(worth[1]);
    for (int s = 0; s < u->subs; s++) {
        u->scale_code[s] = (uint8_t)code[s][0], u->min_code[s] = (uint8_t)code[s][1];
        u->scale[s] = ql_f16_to_f32(u->d) * (code[s][0] - ql_scale_middle(u->type));
        u->min[s] = ql_has_min(u->type) ? ql_f16_to_f32(u->m) * code[s][1] : 0.0f;
    }
}

static void refit(unit *u) {
    for (int pass = 0; pass * QL_WIDTH < u->subs; pass++) {
        ql_wide scale, min;
        memcpy(&scale, u->scale + pass * QL_WIDTH, sizeof scale);
        memcpy(&min, u->min + pass * QL_WIDTH, sizeof min);
        ql_refit(u->type, column_of(u, pass), scale, min);
    }
}

/* Back in the order of the weights. */
static void store_codes(unit *u) {
    float rows[QL_SUPER];
    for (int first = 0; first < u->subs; first += QL_WIDTH) {
        ql_wide *column = u->codes + first / QL_WIDTH * u->n;
        for (int i = 0; i < u->n; i += QL_WIDTH) {
            transpose(column + i);
            for (int lane = 0; lane < QL_WIDTH && first + lane < u->subs; lane++)
                memcpy(rows + (first + lane) * u->n + i, &column[i + lane], sizeof *column);
        }
    }
    for (int i = 0; i < u->subs * u->n; i++) u->code[i] = (uint8_t)(int)rows[i];
}

/* Four bytes of codes of the blocks in a column: Q8_0 has a code in each, counted from 127, the others the lower bits of two. */
static inline __attribute__((always_inline)) words code_word(ql_block_type type, const ql_wide *code) {
    words word = {0};
    for (int o = 3; o >= 0; o--) {
        words byte = whole(code[o]);
        if (type == QL_Q8_0) byte = (byte - 127) & 255;
        else byte = (byte & 15) | (whole(code[o + 16]) & 15) << 4;
        word = word << 8 | byte;
    }
    return word;
}

static words fifth_bits(const ql_wide *code) {
    words word = {0};
    for (int j = 31; j >= 0; j--) word = word << 1 | whole(code[j]) >> 4;
    return word;
}

/* One text per type: with the type known, the formula of a byte is short, and loops over alike ones are vector instructions. */
static inline __attribute__((always_inline)) void put_super(ql_block_type type, int bytes, const ql_block_parts *parts,
                                                            uint8_t *to) {
    for (int o = 0; o < 2; o++) to[o] = ql_block_byte(type, parts, o);
    for (int o = 2; o < bytes; o++) to[o] = ql_block_byte(type, parts, o);
}

/* The layout of ql_simple_byte, the blocks of a column side by side: their codes never go back into the order of the weights. */
static inline __attribute__((always_inline)) void put_simple(ql_block_type type, int bytes, const unit *u,
                                                             uint8_t *to) {
    const int fifth = ql_code_bits(type) == 5, head = ql_has_min(type) ? 4 : 2, count = (bytes - head) / 4;
    for (int first = 0; first < u->subs; first += QL_WIDTH) {
        const ql_wide *code = u->codes + first / QL_WIDTH * 32;
        uint32_t word[8][QL_WIDTH];
        for (int i = 0; i < count; i++) {
            words all = fifth && i == 0 ? fifth_bits(code) : code_word(type, code + 4 * (i - fifth));
            memcpy(word[i], &all, sizeof all);
        }
        uint16_t half[2][QL_WIDTH];
        for (int l = 0; l < QL_WIDTH; l++) half[0][l] = ql_f32_to_f16(u->scale[first + l]);
        for (int l = 0; l < QL_WIDTH && head == 4; l++) half[1][l] = ql_f32_to_f16(u->min[first + l]);
        for (int l = 0; l < QL_WIDTH && first + l < u->subs; l++, to += bytes) {
            memcpy(to, &half[0][l], 2);
            if (head == 4) memcpy(to + 2, &half[1][l], 2);
            for (int i = 0; i < count; i++) memcpy(to + head + 4 * i, &word[i][l], 4);
        }
    }
}

static void put(const unit *u, uint8_t *to) {
    const ql_block_parts parts = {u->code, u->scale_code, u->min_code, u->d, u->m};
    switch (u->type) {
#define PUT(name, text, number, weights, bytes)                                                                        \
    case name:                                                                                                         \
        if (weights == QL_SUPER) put_super(name, bytes, &parts, to);                                                   \
        else put_simple(name, bytes, u, to);                                                                           \
        break;
        QL_BLOCK_TYPES(PUT)
#undef PUT
    default: break;
    }
}

static void encode_row(ql_block_type type, const float *x, const float *importance, int64_t k, uint8_t *to) {
    float row = importance && ql_needs_row_energy(type) ? ql_sum_of_squares(x, k) / (float)k : 0.0f;
    for (int64_t i = 0; i < k; i += QL_SUPER) {
        int64_t count = k - i < QL_SUPER ? k - i : QL_SUPER;
        unit u = {.type = type, .important = importance != NULL, .n = ql_sub_weights(type)};
        u.subs = (int)(count / u.n);
        load(&u, x + i, importance ? importance + i : NULL);
        int super = ql_is_super(type);
        fit(&u, row, importance && super ? ql_sum_of_squares(x + i, QL_SUPER) / QL_SUPER : 0.0f);
        if (super) {
            fit_scales(&u);
            refit(&u);
            store_codes(&u);
        }
        put(&u, to);
        to += count / ql_block_weights(type) * ql_block_bytes(type);
    }
}

ql_status ql_cpu_encode_blocks(ql_ctx *ctx, ql_mat w, ql_mat importance, ql_block_type type, ql_mat blocks) {
#pragma omp parallel for schedule(dynamic, 8) num_threads(ctx->threads)
    for (int64_t r = 0; r < w.rows; r++)
        encode_row(type, (const float *)w.data + r * w.ld, importance.data, w.cols,
                   (uint8_t *)blocks.data + r * blocks.ld);
    return QL_OK;
}

static inline __attribute__((always_inline)) void take_values(ql_block_type type, int64_t count, int64_t bytes,
                                                              const uint8_t *from, int64_t k, float *to) {
    for (int64_t i = 0; i < k; i += count, from += bytes)
        for (int j = 0; j < count; j++) to[i + j] = ql_block_value(type, from, j);
}

static void decode_row(ql_block_type type, const uint8_t *from, int64_t k, float *to) {
    switch (type) {
#define TAKE(name, text, number, weights, bytes)                                                                       \
    case name: take_values(name, weights, bytes, from, k, to); break;
        QL_BLOCK_TYPES(TAKE)
#undef TAKE
    default: break;
    }
}

ql_status ql_cpu_decode_blocks(ql_ctx *ctx, ql_mat blocks, ql_block_type type, ql_mat w) {
#pragma omp parallel for schedule(static) num_threads(ctx->threads)
    for (int64_t r = 0; r < w.rows; r++)
        decode_row(type, (const uint8_t *)blocks.data + r * blocks.ld, w.cols, (float *)w.data + r * w.ld);
    return QL_OK;
}
