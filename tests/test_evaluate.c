/* The forward pass of every architecture, as `evaluate` sees it, against a whole model in naive double precision whose weights never
 * went through a file. */
#include "tests/test.h"

#include <math.h>
#include <stdio.h>

#include "calib/evaluate.h"
#include "host/file.h"
#include "host/rng.h"
#include "tests/make.h"
#include "tests/ref.h"

enum { ROWS = 3, LENGTH = 24 };
static const int64_t lengths[ROWS] = {LENGTH, 7, 2};

/* ---- the naive model ----------------------------------------------------------------------------------------------------- */

typedef struct naive {
    const make_model *m;
    int64_t window, tokens;
    ql_arena *arena;
} naive;

static ql_mat matrix(const naive *n, int64_t rows, int64_t cols) {
    ql_mat out;
    assert_ok(ql_arena_mat(n->arena, QL_F64, rows, cols, &out));
    return out;
}

/* A tensor as the file holds it: F32. */
static ql_mat tensor(const naive *n, const char *name, int64_t rows, int64_t cols) {
    ql_mat out = matrix(n, rows, cols);
    for (int64_t i = 0; i < rows * cols; i++) ((double *)out.data)[i] = (float)make_value(n->m->seed, name, cols, i);
    return out;
}

static ql_mat layer_tensor(const naive *n, int64_t layer, const char *suffix, int64_t rows, int64_t cols) {
    char name[128];
    snprintf(name, sizeof name, "model.layers.%d.%s", (int)layer, suffix);
    return tensor(n, name, rows, cols);
}

static ql_mat apply(const naive *n, int64_t layer, const char *module, bool bias, ql_mat x, int64_t rows) {
    char name[96];
    ql_mat y = matrix(n, x.rows, rows), b = ql_no_mat();
    if (bias) {
        snprintf(name, sizeof name, "%s.bias", module);
        b = layer_tensor(n, layer, name, 1, rows);
    }
    snprintf(name, sizeof name, "%s.weight", module);
    ref_gemm(x, layer_tensor(n, layer, name, rows, x.cols), b, y);
    return y;
}

static ql_mat normed(const naive *n, ql_mat x, ql_mat weight) {
    ql_mat y = matrix(n, x.rows, x.cols);
    ref_rmsnorm(x, weight, 1e-5, y);
    return y;
}

static void add(ql_mat x, ql_mat y) {
    for (int64_t i = 0; i < x.rows * x.cols; i++) ((double *)x.data)[i] += ((double *)y.data)[i];
}

/* Rotary embedding from its formula: theta 10000, halves paired. */
static ql_mat rotate(const naive *n, ql_mat x, int64_t heads, ql_mat position) {
    int64_t half = x.cols / heads / 2;
    ql_mat y = matrix(n, x.rows, x.cols), cosine = matrix(n, LENGTH, half), sine = matrix(n, LENGTH, half);
    for (int64_t p = 0; p < LENGTH; p++)
        for (int64_t i = 0; i < half; i++) {
            double angle = (double)p * pow(10000.0, -(double)i / (double)half);
            ref_put(cosine, p, i, cos(angle));
            ref_put(sine, p, i, sin(angle));
        }
    ref_rope(x, heads, position, cosine, sine, y);
    return y;
}

static void block_of(const naive *n, int64_t layer, ql_mat x, const int64_t *start, ql_mat position) {
    const make_model *m = n->m;
    bool qkv_bias = m->attention_bias || m->arch == ARCH_QWEN2, o_bias = m->attention_bias;
    ql_mat h = normed(n, x, layer_tensor(n, layer, "input_layernorm.weight", 1, m->hidden));
    ql_mat q = apply(n, layer, "self_attn.q_proj", qkv_bias, h, m->heads * m->head_dim);
    ql_mat k = apply(n, layer, "self_attn.k_proj", qkv_bias, h, m->kv_heads * m->head_dim);
    ql_mat v = apply(n, layer, "self_attn.v_proj", qkv_bias, h, m->kv_heads * m->head_dim);
    if (m->arch == ARCH_QWEN3) {
        q = normed(n, q, layer_tensor(n, layer, "self_attn.q_norm.weight", 1, m->head_dim));
        k = normed(n, k, layer_tensor(n, layer, "self_attn.k_norm.weight", 1, m->head_dim));
    }
    const ql_attention_shape shape = {m->heads, m->kv_heads, n->window, (float)(1 / sqrt((double)m->head_dim))};
    ql_mat attn = matrix(n, x.rows, q.cols);
    ref_attention(rotate(n, q, m->heads, position), rotate(n, k, m->kv_heads, position), v, &shape, start, ROWS, attn);
    add(x, apply(n, layer, "self_attn.o_proj", o_bias, attn, m->hidden));
    h = normed(n, x, layer_tensor(n, layer, "post_attention_layernorm.weight", 1, m->hidden));
    ql_mat act = matrix(n, x.rows, m->intermediate);
    ref_swiglu(apply(n, layer, "mlp.gate_proj", m->mlp_bias, h, m->intermediate),
               apply(n, layer, "mlp.up_proj", m->mlp_bias, h, m->intermediate), act);
    add(x, apply(n, layer, "mlp.down_proj", m->mlp_bias, act, m->hidden));
}

/* Mean nll over scored tokens. */
static double naive_nll(const naive *n, const token_file *t) {
    const make_model *m = n->m;
    ql_mat table = tensor(n, "model.embed_tokens.weight", m->vocab, m->hidden), x = matrix(n, t->n_tokens, m->hidden);
    ql_mat position = matrix(n, 1, t->n_tokens), logits = matrix(n, t->n_tokens, m->vocab);
    for (int64_t s = 0; s < ROWS; s++)
        for (int64_t i = t->start[s]; i < t->start[s + 1]; i++) {
            ref_put(position, 0, i, (double)(i - t->start[s]));
            for (int64_t c = 0; c < m->hidden; c++) ref_put(x, i, c, ref_at(table, t->ids[i], c));
        }
    for (int64_t layer = 0; layer < m->layers; layer++) block_of(n, layer, x, t->start, position);
    x = normed(n, x, tensor(n, "model.norm.weight", 1, m->hidden));
    ref_gemm(x, m->tied_embeddings ? table : tensor(n, "lm_head.weight", m->vocab, m->hidden), ql_no_mat(), logits);
    double sum = 0;
    int64_t scored = 0;
    for (int64_t s = 0; s < ROWS; s++)
        for (int64_t i = t->start[s]; i + 1 < t->start[s + 1]; i++, scored++) sum += ref_nll(logits, i, t->ids[i + 1]);
    return sum / (double)scored;
}

/* ---- the comparison -------------------------------------------------------------------------------------------------------- */

static token_file make_tokens(ql_arena *arena, int64_t vocab) {
    token_file t = {.n_seq = ROWS, .seq_len = LENGTH, .vocab = vocab};
    assert_ok(ql_take(arena, ROWS + 1, sizeof *t.start, &t.start));
    for (int s = 0; s < ROWS; s++) t.start[s + 1] = t.start[s] + lengths[s];
    t.n_tokens = t.start[ROWS];
    assert_ok(ql_take(arena, (size_t)t.n_tokens, sizeof *t.ids, &t.ids));
    for (int64_t i = 0; i < t.n_tokens; i++) t.ids[i] = (int32_t)(ql_random(3, (uint64_t)i) % (uint64_t)vocab);
    return t;
}

static void compare(make_model m, int64_t window) {
    char dir[MAKE_PATH];
    ql_arena *arena;
    ql_ctx *ctx;
    model loaded;
    progress *p;
    evaluation result;
    m.dtype = QL_F32;
    make_dir(dir);
    assert_ok(make_checkpoint(dir, &m));
    assert_ok(ql_arena_open(NULL, &arena));
    assert_ok(ql_ctx_open("cpu", 2, &ctx));
    assert_ok(model_open(ctx, dir, &loaded));
    assert_ok(progress_open(PROGRESS_NONE, "test", 1, &p));
    token_file tokens = make_tokens(arena, m.vocab);
    assert_ok(evaluate(ctx, &loaded, NULL, &tokens, p, &result));
    const naive n = {&m, window, tokens.n_tokens, arena};
    double truth = naive_nll(&n, &tokens);
    assert_int_equal(result.n_tokens, LENGTH - 1 + 6 + 1);
    /* FP32 through two blocks of width 64: some 1e-6 of logits of order 1. */
    if (fabs(result.nll - truth) > 1e-5) fail_msg("nll %.9f, naive %.9f", result.nll, truth);
    progress_close(p);
    model_close(&loaded);
    ql_ctx_close(ctx);
    ql_arena_close(arena);
    assert_ok(ql_dir_remove(dir));
}

static void llama_with_grouped_queries(void **state) {
    (void)state;
    compare(make_tiny(ARCH_LLAMA), 0);
}

static void llama_with_biases_and_tied_embeddings(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_LLAMA);
    m.attention_bias = m.mlp_bias = m.tied_embeddings = true;
    compare(m, 0);
}

static void mistral_with_a_sliding_window(void **state) {
    (void)state;
    make_model m = make_tiny(ARCH_MISTRAL);
    m.extra = "\"sliding_window\": 5";
    compare(m, 5);
}

static void qwen2_with_its_biases(void **state) {
    (void)state;
    compare(make_tiny(ARCH_QWEN2), 0);
}

static void qwen3_with_normed_queries_and_keys(void **state) {
    (void)state;
    compare(make_tiny(ARCH_QWEN3), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama_with_grouped_queries),         cmocka_unit_test(llama_with_biases_and_tied_embeddings),
        cmocka_unit_test(mistral_with_a_sliding_window),      cmocka_unit_test(qwen2_with_its_biases),
        cmocka_unit_test(qwen3_with_normed_queries_and_keys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
