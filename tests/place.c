#include "tests/place.h"

#include <stdio.h>

#include "calib/evaluate.h"
#include "calib/verify.h"
#include "host/file.h"
#include "host/rng.h"
#include "tests/test.h"

enum { ROWS = 8, LENGTH = 32 };

place place_open(const make_model *m) {
    place p = {.made = *m};
    make_dir(p.dir);
    snprintf(p.model, sizeof p.model, "%s/model", p.dir);
    snprintf(p.tokens, sizeof p.tokens, "%s/tokens.h5", p.dir);
    snprintf(p.stats, sizeof p.stats, "%s/stats", p.dir);
    snprintf(p.out, sizeof p.out, "%s/out", p.dir);
    snprintf(p.work, sizeof p.work, "%s/work", p.dir);
    assert_ok(ql_dir_make(p.model));
    assert_ok(make_checkpoint(p.model, m));
    assert_ok(ql_ctx_open("cpu", 2, &p.ctx));
    assert_ok(ql_arena_open(NULL, &p.arena));
    int32_t ids[ROWS * LENGTH];
    int64_t start[ROWS + 1];
    for (int i = 0; i < ROWS * LENGTH; i++) ids[i] = (int32_t)(ql_random(5, (uint64_t)i) % (uint64_t)m->vocab);
    for (int s = 0; s <= ROWS; s++) start[s] = s * LENGTH;
    const token_file t = {
        .n_seq = ROWS, .seq_len = LENGTH, .vocab = m->vocab, .n_tokens = ROWS * LENGTH, .ids = ids, .start = start};
    assert_ok(tokens_write(p.tokens, &t, "random", 5));
    return p;
}

void place_close(place *p) {
    ql_ctx_close(p->ctx);
    ql_arena_close(p->arena);
    assert_ok(ql_dir_remove(p->dir));
}

quantize_request place_request(const place *p, int bits) {
    quantize_request r = {.model_dir = p->model,
                          .out_dir = p->out,
                          .work_dir = p->work,
                          .tokens_path = p->tokens,
                          .mode = STATISTICS_PROPAGATED,
                          .shard_size = 5000000000u};
    recipe_defaults(&r.recipe);
    r.recipe.base.bits = bits;
    r.recipe.base.group = 32;
    return r;
}

json_t *place_quantize(place *p, quantize_request *r) {
    json_t *report;
    verify_result found;
    assert_ok(recipe_check(&r->recipe));
    assert_ok(quantize_run(p->ctx, r, 1, &report));
    assert_ok(verify_directory(r->out_dir, p->model, p->arena, &found));
    if (found.findings) fail_msg("%s", found.finding[0]);
    return report;
}

void place_calibrate(place *p, int kinds) {
    json_t *report;
    const calibrate_request request = {
        .model_dir = p->model, .tokens_path = p->tokens, .work_dir = p->stats, .kinds = kinds};
    assert_ok(calibrate_run(p->ctx, &request, &report));
    json_decref(report);
}

double place_kl(place *p, const char *dir, bool weights_only) {
    model m, base;
    token_file tokens;
    progress *quiet;
    evaluation e;
    assert_ok(tokens_read(p->tokens, p->arena, &tokens));
    assert_ok(model_open(p->ctx, dir, &m));
    assert_ok(model_open(p->ctx, p->model, &base));
    m.weights_only = weights_only;
    assert_ok(progress_open(PROGRESS_NONE, "test", 1, &quiet));
    assert_ok(evaluate(p->ctx, &m, &base, &tokens, quiet, &e));
    progress_close(quiet);
    model_close(&m);
    model_close(&base);
    return e.kld_mean;
}
