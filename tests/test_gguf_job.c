/* Jobs whose output is a GGUF file: the same bytes wherever importance comes from, what cannot be is refused before any work. */
#include "tests/test.h"

#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "calib/schemes.h"
#include "calib/verify.h"
#include "formats/imatrix.h"
#include "formats/layout_gguf.h"
#include "formats/stats.h"
#include "host/log.h"
#include "tests/place.h"

enum { PATH = MAKE_PATH + 32 };

/* K-quants need rows of 256. */
static place open_place(arch which) {
    make_model m = make_tiny(which);
    m.hidden = m.intermediate = 256;
    ql_log_open(false, QL_ERROR); /* tokens of no tokenizer */
    place p = place_open(&m);
    make_text(p.model, "tokenizer.json",
              "{\"pre_tokenizer\": {\"type\": \"ByteLevel\", \"use_regex\": true}, \"model\": {\"type\": \"BPE\", "
              "\"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, \"merges\": [\"a b\"]}}");
    return p;
}

static quantize_request request_of(place *p, const char *scheme, const char *name) {
    named_scheme named;
    char *out, *work;
    assert_ok(scheme_find(scheme, &named));
    assert_ok(recipe_check(&named.recipe));
    assert_ok(ql_arena_format(p->arena, &out, "%s/%s", p->dir, name));
    assert_ok(ql_arena_format(p->arena, &work, "%s/%s.work", p->dir, name));
    quantize_request r = place_request(p, 4);
    r.out_dir = out, r.work_dir = work;
    r.mode = STATISTICS_FP;
    r.recipe = named.recipe, r.format = named.format;
    return r;
}

static void run_all(place *p, const quantize_request *requests, int count) {
    json_t *reports[4];
    assert_ok(quantize_run(p->ctx, requests, count, reports));
    for (int i = 0; i < count; i++) json_decref(reports[i]);
}

static const char *file_of(place *p, const char *name) {
    char *path;
    assert_ok(ql_arena_format(p->arena, &path, "%s/%s/model.gguf", p->dir, name));
    return path;
}

static void assert_same_file(place *p, const char *a, const char *b) {
    unsigned char sums[2][32];
    assert_ok(ql_file_sha256(file_of(p, a), sums[0]));
    assert_ok(ql_file_sha256(file_of(p, b), sums[1]));
    if (memcmp(sums[0], sums[1], 32) != 0) fail_msg("%s and %s differ", a, b);
}

/* Rows moved for llama, and not for qwen; names, types and keys are what verify and eval expect.  Q8_0 is about 13 times finer than
 * Q4_K, and KL is quadratic in the error. */
static void gguf_job_of_every_architecture(void **state) {
    (void)state;
    const arch all[] = {ARCH_LLAMA, ARCH_MISTRAL, ARCH_QWEN2, ARCH_QWEN3};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        place p = open_place(all[i]);
        const quantize_request r[2] = {request_of(&p, "Q4_K_M", "four"), request_of(&p, "Q8_0", "eight")};
        double kl[2];
        run_all(&p, r, 2);
        for (int f = 0; f < 2; f++) {
            verify_result found;
            assert_ok(verify_directory(r[f].out_dir, p.model, p.arena, &found));
            if (found.findings) fail_msg("%s", found.finding[0]);
            assert_int_equal(found.modules, p.made.layers * LINEARS);
            assert_true(found.hashed && found.row_count > found.modules);
            kl[f] = place_kl(&p, r[f].out_dir, false);
        }
        if (!(kl[0] > 0 && kl[0] < 0.05 && kl[1] < kl[0] / 50)) fail_msg("%d: KL %g and %g", (int)all[i], kl[0], kl[1]);
        place_close(&p);
    }
}

/* The importance of a store, as it should be in a file: sums over the tokens, divided. */
static imatrix importance_of(place *p) {
    imatrix m = {.dataset = ""};
    assert_ok(ql_take(p->arena, (size_t)p->made.layers * LINEARS, sizeof *m.entries, &m.entries));
    for (int64_t layer = 0; layer < p->made.layers; layer++) {
        char *path;
        stats_layer stats;
        assert_ok(stats_path(p->arena, p->stats, layer, &path));
        assert_ok(stats_read(path, NULL, p->arena, &stats));
        for (linear_id id = 0; id < LINEARS; id++) {
            static const char *const names[LINEARS] = {"attn_q",   "attn_k", "attn_v",  "attn_output",
                                                       "ffn_gate", "ffn_up", "ffn_down"};
            const stats_site *s = &stats.site[linear_site[id]];
            char *name;
            float *mean;
            assert_ok(ql_arena_format(p->arena, &name, "blk.%d.%s.weight", (int)layer, names[id]));
            assert_ok(ql_take(p->arena, (size_t)s->k, sizeof *mean, &mean));
            for (int64_t i = 0; i < s->k; i++) mean[i] = (float)s->sum_sq[i] / (float)s->count;
            m.entries[m.count++] = (imatrix_entry){.name = name, .k = s->k, .mean = mean, .count = s->count};
        }
    }
    return m;
}

static void put(FILE *f, const void *data, size_t size) { assert_int_equal(fwrite(data, 1, size, f), size); }

/* The form of formats/imatrix.h that came first; one call, so that nothing is divided. */
static void write_legacy(const char *path, const imatrix *m) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    int32_t count = (int32_t)m->count, calls = 1;
    put(f, &count, 4);
    for (int64_t i = 0; i < m->count; i++) {
        int32_t length = (int32_t)strlen(m->entries[i].name), k = (int32_t)m->entries[i].k;
        put(f, &length, 4), put(f, m->entries[i].name, (size_t)length), put(f, &calls, 4);
        put(f, &k, 4), put(f, m->entries[i].mean, (size_t)k * 4);
    }
    assert_int_equal(fclose(f), 0);
}

static quantize_request with_imatrix(place *p, const char *scheme, const char *name, const char *path) {
    quantize_request r = request_of(p, scheme, name);
    r.tokens_path = NULL, r.imatrix_path = path, r.mode = STATISTICS_NONE;
    return r;
}

/* Alone, beside others, from a store, from either form of file: the same bytes; and without importance others. */
static void gguf_job_same_bytes_from_every_source(void **state) {
    (void)state;
    place p = open_place(ARCH_LLAMA);
    place_calibrate(&p, STATS_MOMENTS);
    imatrix m = importance_of(&p);
    char modern[PATH], legacy[PATH];
    snprintf(modern, PATH, "%s/modern", p.dir), snprintf(legacy, PATH, "%s/legacy", p.dir);
    assert_ok(imatrix_write(modern, &m));
    write_legacy(legacy, &m);
    quantize_request alone = request_of(&p, "Q3_K_M", "alone"), stored = request_of(&p, "Q3_K_M", "stored");
    quantize_request list[3] = {request_of(&p, "W4A16-GPTQ-g128", "gptq"), request_of(&p, "Q3_K_M", "list"),
                                request_of(&p, "FP8", "fp8")};
    quantize_request files[2] = {with_imatrix(&p, "Q3_K_M", "modern.out", modern),
                                 with_imatrix(&p, "Q3_K_M", "legacy.out", legacy)};
    quantize_request none = with_imatrix(&p, "Q3_K_M", "none", NULL);
    stored.tokens_path = NULL, stored.stats_dir = p.stats;
    run_all(&p, &alone, 1);
    run_all(&p, &stored, 1);
    run_all(&p, list, 3);
    run_all(&p, &files[0], 1);
    run_all(&p, &files[1], 1);
    run_all(&p, &none, 1);
    assert_same_file(&p, "alone", "stored");
    assert_same_file(&p, "alone", "list");
    assert_same_file(&p, "alone", "modern.out");
    assert_same_file(&p, "alone", "legacy.out");
    gguf_file a, b;
    assert_ok(gguf_open(file_of(&p, "alone"), p.arena, &a));
    assert_ok(gguf_open(file_of(&p, "none"), p.arena, &b));
    assert_non_null(gguf_key_of(&a, GGUF_IMPORTANCE_KEY));
    assert_null(gguf_key_of(&b, GGUF_IMPORTANCE_KEY));
    gguf_close(&a), gguf_close(&b);
    place_close(&p);
}

/* The job's blocks, encoded layer by layer and committed, are those that the writer makes by itself from the checkpoint. */
static void gguf_job_writes_what_the_layout_writes(void **state) {
    (void)state;
    place p = open_place(ARCH_QWEN2);
    place_calibrate(&p, STATS_MOMENTS);
    imatrix m = importance_of(&p);
    char modern[PATH], direct[PATH];
    snprintf(modern, PATH, "%s/modern", p.dir), snprintf(direct, PATH, "%s/direct.gguf", p.dir);
    assert_ok(imatrix_write(modern, &m));
    assert_ok(imatrix_read(modern, p.arena, &m)); /* sorted */
    quantize_request r = request_of(&p, "Q2_K", "job");
    run_all(&p, &r, 1);
    checkpoint *ck;
    model_config config;
    gguf_plan plan;
    gguf_meta meta = {0};
    assert_ok(checkpoint_open(p.model, &ck));
    assert_ok(model_config_parse(checkpoint_config(ck), p.model, p.arena, &config));
    assert_ok(gguf_plan_make(&config, MIX_Q2_K, true, p.arena, &plan));
    const gguf_source source = {.values = gguf_values_of_checkpoint, .user = ck, .ctx = p.ctx, .weights = &m};
    assert_ok(gguf_save(direct, &plan, &meta, &source, NULL));
    gguf_file job, same;
    assert_ok(gguf_open(file_of(&p, "job"), p.arena, &job));
    assert_ok(gguf_open(direct, p.arena, &same));
    assert_int_equal(job.count, same.count);
    for (int64_t i = 0; i < job.count; i++) {
        void *x, *y;
        assert_string_equal(job.tensors[i].name, same.tensors[i].name);
        assert_int_equal(job.tensors[i].size, same.tensors[i].size);
        assert_ok(ql_take(p.arena, job.tensors[i].size, 1, &x));
        assert_ok(ql_take(p.arena, job.tensors[i].size, 1, &y));
        assert_ok(gguf_read(&job, &job.tensors[i], x));
        assert_ok(gguf_read(&same, &same.tensors[i], y));
        if (memcmp(x, y, job.tensors[i].size) != 0) fail_msg("%s differs", job.tensors[i].name);
    }
    gguf_close(&job), gguf_close(&same);
    checkpoint_close(ck);
    place_close(&p);
}

/* One line each, and nothing is written. */
static void refuse(place *p, const quantize_request *r, ql_status status, const char *words) {
    json_t *report;
    assert_refused(quantize_run(p->ctx, r, 1, &report), status, words);
    assert_false(ql_path_exists(r->out_dir));
}

static void gguf_job_refuses_importance_of_another_model(void **state) {
    (void)state;
    place p = open_place(ARCH_LLAMA);
    char path[PATH];
    place_calibrate(&p, STATS_MOMENTS);
    imatrix m = importance_of(&p);
    snprintf(path, PATH, "%s/matrix", p.dir);
    quantize_request r = with_imatrix(&p, "Q4_K_M", "out", path);
    imatrix_entry *last = &m.entries[m.count - 1];
    const imatrix_entry good = *last;
    last->name = "blk.7.ffn_down.weight";
    assert_ok(imatrix_write(path, &m));
    refuse(&p, &r, QL_MISMATCH, "blk.7.ffn_down.weight");
    *last = good, last->k--;
    assert_ok(imatrix_write(path, &m));
    refuse(&p, &r, QL_MISMATCH, "\"blk.1.ffn_down.weight\" has 255 values");
    *last = good, m.count--;
    assert_ok(imatrix_write(path, &m));
    refuse(&p, &r, QL_MISMATCH, "nothing for \"blk.1.ffn_down.weight\"");
    m.count++, last->mean[3] = NAN;
    assert_ok(imatrix_write(path, &m));
    refuse(&p, &r, QL_FORMAT, "expected a mean of squares");
    make_text(p.dir, "matrix", "GGUF");
    refuse(&p, &r, QL_FORMAT, "matrix");
    place_close(&p);
}

static void gguf_job_refuses_before_work(void **state) {
    (void)state;
    place p = open_place(ARCH_LLAMA);
    quantize_request r = request_of(&p, "Q4_K_M", "out");
    place_calibrate(&p, STATS_HESSIAN);
    r.tokens_path = NULL, r.stats_dir = p.stats;
    refuse(&p, &r, QL_MISMATCH, "holds no moments");
    r = request_of(&p, "Q4_K_M", "out2"), r.format = OUTPUT_GPTQ;
    refuse(&p, &r, QL_MISMATCH, "Q4_K_M: is a GGUF file");
    r = request_of(&p, "FP8", "out2"), r.format = OUTPUT_GGUF;
    refuse(&p, &r, QL_MISMATCH, "one of its own mixes");
    r = request_of(&p, "F16", "half");
    run_all(&p, &r, 1);
    quantize_request again = request_of(&p, "FP8", "out2");
    again.model_dir = r.out_dir;
    refuse(&p, &again, QL_MISMATCH, "quantize the checkpoint that it was made from");
    char *tokenizer;
    assert_ok(ql_arena_format(p.arena, &tokenizer, "%s/tokenizer.json", p.model));
    assert_int_equal(unlink(tokenizer), 0);
    r = request_of(&p, "Q4_K_M", "out2");
    refuse(&p, &r, QL_MISSING, "no tokenizer.json");
    assert_false(ql_path_exists(r.work_dir));
    place_close(&p);
}

static void write_at(const char *path, uint64_t at, const void *data, size_t size) {
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, (long)at, SEEK_SET), 0);
    put(f, data, size);
    assert_int_equal(fclose(f), 0);
}

static void assert_finding(place *p, const char *dir, const char *base, const char *words) {
    verify_result found;
    assert_ok(verify_directory(dir, base, p->arena, &found));
    assert_true(found.findings > 0);
    for (int64_t i = 0; i < found.findings && i < VERIFY_SHOWN; i++)
        if (strstr(found.finding[i], words)) return;
    fail_msg("%s, expected %s", found.finding[0], words);
}

/* Damage, another model's weights, and a kind of file that the types are not those of. */
static void gguf_job_verify_sees_damage(void **state) {
    (void)state;
    place p = open_place(ARCH_LLAMA);
    quantize_request r = request_of(&p, "Q5_K_M", "out");
    r.tokens_path = NULL, r.mode = STATISTICS_NONE;
    run_all(&p, &r, 1);
    char other[PATH];
    snprintf(other, PATH, "%s/other", p.dir);
    assert_ok(ql_dir_make(other));
    p.made.seed++;
    assert_ok(make_checkpoint(other, &p.made));
    assert_finding(&p, r.out_dir, other, "away from the source");
    gguf_file file;
    const char *path = file_of(&p, "out");
    assert_ok(gguf_open(path, p.arena, &file));
    const gguf_tensor *q = gguf_find(&file, "blk.1.attn_q.weight");
    const gguf_key *kind = gguf_key_of(&file, "general.file_type");
    uint64_t at[2] = {q->begin + 1, 0}; /* the exponent of the first scale */
    uint8_t inf = 0x7c, q4_k_s = 14;
    char *bytes;
    size_t size;
    assert_ok(ql_file_load(path, 1 << 24, p.arena, &bytes, &size));
    for (at[1] = 0; memcmp(bytes + at[1], "general.file_type", 17) != 0;) at[1]++;
    at[1] += 17 + 4;
    assert_int_equal(bytes[at[1]], *kind->value);
    gguf_close(&file);
    for (int i = 0; i < 2; i++) {
        write_at(path, at[i], i ? &q4_k_s : &inf, 1);
        assert_finding(&p, r.out_dir, NULL, "SHA-256");
        assert_finding(&p, r.out_dir, NULL, i ? "expected Q4_K" : "not finite");
    }
    assert_int_equal(truncate(path, (off_t)size - 100), 0);
    assert_finding(&p, r.out_dir, NULL, "model.gguf");
    place_close(&p);
}

/* Where a tensor of the model begins, and its first value. */
static uint64_t first_value(place *p, const char *path, const char *name, uint16_t *value) {
    st_file file;
    uint64_t at = 0;
    assert_ok(st_open(path, NULL, p->arena, &file));
    for (int64_t i = 0; i < file.count; i++)
        if (strcmp(file.tensors[i].name, name) == 0) {
            at = file.tensors[i].begin;
            assert_ok(ql_source_read(file.source, value, sizeof *value, at));
        }
    st_close(&file);
    assert_true(at > 0);
    return at;
}

/* The second layer fails, then what is read only while the file is written: the first layer's blocks stay committed, and the bytes in
 * the end are those of one run. */
static void gguf_job_resumes(void **state) {
    (void)state;
    place p = open_place(ARCH_QWEN3);
    quantize_request whole = request_of(&p, "Q4_K_S", "whole"), parts = request_of(&p, "Q4_K_S", "parts");
    char weights[PATH], layer[2 * PATH];
    run_all(&p, &whole, 1);
    snprintf(weights, PATH, "%s/model.safetensors", p.model);
    snprintf(layer, sizeof layer, "%s/layer-0000.safetensors", parts.work_dir);
    parts.resume = true;
    const char *const bad[] = {"model.layers.1.mlp.up_proj.weight", "lm_head.weight"};
    for (int i = 0; i < 2; i++) {
        uint16_t value, inf = 0x7f80;
        uint64_t at = first_value(&p, weights, bad[i], &value);
        write_at(weights, at, &inf, sizeof inf);
        refuse(&p, &parts, QL_FORMAT, "not finite");
        assert_true(ql_path_exists(layer));
        write_at(weights, at, &value, sizeof value);
    }
    run_all(&p, &parts, 1);
    assert_same_file(&p, "whole", "parts");
    place_close(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gguf_job_of_every_architecture),
        cmocka_unit_test(gguf_job_same_bytes_from_every_source),
        cmocka_unit_test(gguf_job_writes_what_the_layout_writes),
        cmocka_unit_test(gguf_job_refuses_importance_of_another_model),
        cmocka_unit_test(gguf_job_refuses_before_work),
        cmocka_unit_test(gguf_job_verify_sees_damage),
        cmocka_unit_test(gguf_job_resumes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
