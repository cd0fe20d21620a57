/* A model as GGUF: names, types and sizes as llama.cpp has them, rows of q and k, metadata and tokenizers, and the way back. */
#include <math.h>

#include "tests/make.h"
#include "tests/test.h"

#include "formats/layout_gguf.h"

typedef struct place {
    char dir[MAKE_PATH], path[MAKE_PATH + 16];
    ql_arena *arena;
    ql_ctx *ctx;
} place;

static int setup(void **state) {
    place *p = calloc(1, sizeof *p);
    make_dir(p->dir);
    snprintf(p->path, sizeof p->path, "%s/model.gguf", p->dir);
    assert_ok(ql_arena_open(NULL, &p->arena));
    assert_ok(ql_ctx_open("cpu", 2, &p->ctx));
    *state = p;
    return 0;
}

static int teardown(void **state) {
    place *p = *state;
    assert_ok(ql_dir_remove(p->dir));
    ql_ctx_close(p->ctx);
    ql_arena_close(p->arena);
    free(p);
    return 0;
}

static model_config parse(const char *text, ql_arena *arena) {
    model_config config;
    json_t *json = json_loads(text, 0, NULL);
    assert_non_null(json);
    assert_ok(model_config_parse(json, "config.json", arena, &config));
    json_decref(json);
    return config;
}

static const char llama_8b[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"vocab_size\": 128256, \"hidden_size\": "
    "4096,"
    "\"intermediate_size\": 14336, \"num_hidden_layers\": 32, \"num_attention_heads\": 32, \"num_key_value_heads\": 8,"
    "\"hidden_act\": \"silu\", \"max_position_embeddings\": 131072, \"rms_norm_eps\": 1e-5, \"rope_theta\": 500000,"
    "\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 1, \"high_freq_factor\": 4,"
    "\"original_max_position_embeddings\": 8192}, \"tie_word_embeddings\": false}";

/* ---- names and types ---------------------------------------------------------------------------------------------------------- */

/* What llama.cpp prints about its own files of this model, to the byte. */
static void layout_gguf_sizes_of_llama_8b(void **state) {
    place *p = *state;
    static const struct {
        const char *mix;
        uint64_t bytes;
    } known[] = {
        {"Q2_K", 3171295488}, {"Q3_K_S", 3656663296}, {"Q3_K_M", 4011081984}, {"Q3_K_L", 4314120448},
        {"Q4_0", 4653375744}, {"Q4_1", 5122416896},   {"Q4_K_S", 4684833024}, {"Q4_K_M", 4912898304},
        {"Q5_0", 5591458048}, {"Q5_1", 6060499200},   {"Q5_K_S", 5591458048}, {"Q5_K_M", 5725151488},
        {"Q6_K", 6588170496}, {"Q8_0", 8532934912},   {"IQ4_NL", 4699513088},
    };
    model_config config = parse(llama_8b, p->arena);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        gguf_plan plan;
        gguf_meta none = {0};
        uint64_t size, bytes = 0;
        assert_ok(gguf_plan_make(&config, gguf_mix_of(known[i].mix), false, p->arena, &plan));
        assert_int_equal(plan.count, 292);
        assert_ok(gguf_file_size(&none, plan.tensors, plan.count, &size));
        for (int64_t t = 0; t < plan.count; t++) bytes += plan.tensors[t].size;
        if (bytes != known[i].bytes) fail_msg("%s: %llu bytes", known[i].mix, (unsigned long long)bytes);
    }
    assert_int_equal(gguf_mix_of("Q4_K"), GGUF_MIX_COUNT);
}

static const char *type_in(const gguf_plan *plan, const char *name) {
    for (int64_t i = 0; i < plan->count; i++)
        if (strcmp(plan->entries[i].tensor.name, name) == 0) return plan->entries[i].tensor.type->name;
    return "absent";
}

/* Rows of 896 are no multiple of 256: every K type falls back; 4864 are. */
static void layout_gguf_falls_back(void **state) {
    place *p = *state;
    model_config config = parse("{\"architectures\": [\"Qwen2ForCausalLM\"], \"model_type\": \"qwen2\", "
                                "\"vocab_size\": 1000, \"hidden_size\": 896,"
                                "\"intermediate_size\": 4864, \"num_hidden_layers\": 24, \"num_attention_heads\": 14,"
                                "\"num_key_value_heads\": 2, \"max_position_embeddings\": 32768, \"rms_norm_eps\": "
                                "1e-6, \"hidden_act\": \"silu\","
                                "\"rope_theta\": 1000000, \"tie_word_embeddings\": true}",
                                p->arena);
    gguf_plan plan;
    assert_ok(gguf_plan_make(&config, MIX_Q4_K_M, false, p->arena, &plan));
    assert_string_equal(type_in(&plan, "token_embd.weight"), "Q8_0"); /* the head of a tied model */
    assert_string_equal(type_in(&plan, "output.weight"), "absent");
    assert_string_equal(type_in(&plan, "blk.0.attn_q.weight"), "Q5_0");
    assert_string_equal(type_in(&plan, "blk.0.attn_v.weight"), "Q8_0"); /* wanted Q6_K */
    assert_string_equal(type_in(&plan, "blk.0.ffn_down.weight"), "Q6_K");
    assert_string_equal(type_in(&plan, "blk.3.ffn_down.weight"), "Q4_K"); /* 24 / 8 = 3, (3 - 3) % 3 = 0 */
    assert_string_equal(type_in(&plan, "blk.0.attn_q.bias"), "F32");
    assert_string_equal(type_in(&plan, "blk.0.attn_norm.weight"), "F32");
    assert_ok(gguf_plan_make(&config, MIX_Q2_K, false, p->arena, &plan));
    assert_string_equal(type_in(&plan, "blk.0.ffn_gate.weight"), "Q4_0");
    assert_true(plan.entries[2].fallback);
    assert_ok(
        gguf_plan_make(&config, MIX_Q4_0, true, p->arena, &plan)); /* with importance the first eighth gets more */
    assert_string_equal(type_in(&plan, "blk.2.ffn_down.weight"), "Q4_1");
    assert_string_equal(type_in(&plan, "blk.3.ffn_down.weight"), "Q4_0");
}

static void layout_gguf_names(void **state) {
    (void)state;
    char name[GGUF_NAME_SIZE];
    assert_true(gguf_tensor_name("model.layers.17.self_attn.o_proj.weight", name));
    assert_string_equal(name, "blk.17.attn_output.weight");
    assert_true(gguf_tensor_name("model.layers.3.self_attn.k_norm.weight", name));
    assert_string_equal(name, "blk.3.attn_k_norm.weight");
    assert_true(gguf_tensor_name("lm_head.weight", name));
    assert_string_equal(name, "output.weight");
    assert_false(gguf_tensor_name("model.layers.3.self_attn.rotary_emb.inv_freq", name));
    assert_false(gguf_tensor_name("model.layers.x.mlp.up_proj.weight", name));
}

static void layout_gguf_obstacles(void **state) {
    place *p = *state;
    gguf_plan plan;
    model_config good = parse(llama_8b, p->arena), config = good;
    bool sliding[32] = {[31] = true};
    config.sliding_window = 4096, config.layer_is_sliding = sliding;
    assert_refused(gguf_plan_make(&config, MIX_Q8_0, false, p->arena, &plan), QL_MISMATCH, "sliding window");
    config = good, config.rope.kind = ROPE_DYNAMIC;
    assert_refused(gguf_plan_make(&config, MIX_Q8_0, false, p->arena, &plan), QL_MISMATCH, "dynamic");
    config = good, config.arch = ARCH_QWEN2;
    assert_refused(gguf_plan_make(&config, MIX_Q8_0, false, p->arena, &plan), QL_MISMATCH, "llama alone");
    config = good, config.rope.kind = ROPE_YARN, config.rope.beta_fast = 32, config.rope.beta_slow = 1;
    config.rope.truncate = true, config.rope.attention_factor = 1;
    assert_refused(gguf_plan_make(&config, MIX_Q8_0, false, p->arena, &plan), QL_MISMATCH, "attention factor");
}

/* ---- files of tiny models --------------------------------------------------------------------------------------------------------- */

typedef struct tiny {
    checkpoint *ck;
    model_config config;
    gguf_plan plan;
    gguf_source source;
} tiny;

static tiny open_tiny(place *p, const make_model *model, gguf_mix mix) {
    tiny t = {0};
    assert_ok(make_checkpoint(p->dir, model));
    assert_ok(checkpoint_open(p->dir, &t.ck));
    assert_ok(model_config_parse(checkpoint_config(t.ck), p->dir, p->arena, &t.config));
    assert_ok(gguf_plan_make(&t.config, mix, false, p->arena, &t.plan));
    t.source = (gguf_source){gguf_values_of_checkpoint, t.ck, p->ctx, NULL, NULL};
    return t;
}

static void save_tiny(place *p, tiny *t) {
    gguf_meta meta = {0};
    t->plan.config = &t->config;
    assert_ok(gguf_model_meta(&t->config, t->plan.mix, "tiny", &meta));
    assert_ok(gguf_save(p->path, &t->plan, &meta, &t->source, NULL));
    gguf_meta_free(&meta);
}

static void check_config(const model_config *a, const model_config *b) {
    assert_int_equal(a->vocab, b->vocab), assert_int_equal(a->hidden, b->hidden);
    assert_int_equal(a->intermediate, b->intermediate), assert_int_equal(a->layers, b->layers);
    assert_int_equal(a->heads, b->heads), assert_int_equal(a->kv_heads, b->kv_heads);
    assert_int_equal(a->head_dim, b->head_dim), assert_int_equal(a->max_position, b->max_position);
    assert_true((float)a->rms_eps == (float)b->rms_eps && a->rope.theta == b->rope.theta);
    assert_true(a->rope.factor == b->rope.factor && a->rope.attention_factor == b->rope.attention_factor);
    assert_int_equal(a->rope.kind, b->rope.kind);
    assert_int_equal(a->rope.original_max_position, b->rope.original_max_position);
    assert_int_equal(a->attention_bias, b->attention_bias), assert_int_equal(a->mlp_bias, b->mlp_bias);
    assert_int_equal(a->attention_out_bias, b->attention_out_bias), assert_int_equal(a->qk_norm, b->qk_norm);
    assert_int_equal(a->tied_embeddings, b->tied_embeddings);
}

/* Every tensor of the checkpoint comes back from the file under its name, bit for bit: BF16 holds what was BF16. */
static void check_same_weights(place *p, const tiny *t) {
    checkpoint *back;
    model_config config;
    assert_ok(checkpoint_open(p->path, &back));
    assert_ok(model_config_parse(checkpoint_config(back), p->path, p->arena, &config));
    check_config(&config, &t->config);
    assert_int_equal(checkpoint_count(back), checkpoint_count(t->ck));
    for (int64_t i = 0; i < t->plan.count; i++) {
        const gguf_entry *e = &t->plan.entries[i];
        float *truth, *found;
        if (!e->source) continue;
        const st_tensor *tensor = checkpoint_find(back, e->source);
        assert_non_null(tensor);
        assert_int_equal(tensor->size, e->n * e->k * 4);
        assert_ok(ql_take(p->arena, (size_t)(e->n * e->k), 4, &truth));
        assert_ok(ql_take(p->arena, (size_t)(e->n * e->k), 4, &found));
        assert_ok(gguf_values_of_checkpoint(t->ck, e, truth));
        assert_ok(checkpoint_read(back, tensor, found));
        if (memcmp(truth, found, (size_t)(e->n * e->k) * 4) != 0) fail_msg("%s differs", e->source);
    }
    checkpoint_close(back);
}

static void layout_gguf_every_architecture_comes_back(void **state) {
    place *p = *state;
    static const char *const extras[] = {
        NULL, "\"rope_scaling\": {\"type\": \"linear\", \"factor\": 4.0}",
        "\"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4.0, \"original_max_position_embeddings\": 32}"};
    for (int which = ARCH_LLAMA; which <= ARCH_QWEN3; which++)
        for (int variant = 0; variant < 3; variant++) {
            make_model model = make_tiny((arch)which);
            model.tied_embeddings = variant == 1;
            model.attention_bias = model.mlp_bias = which == ARCH_LLAMA && variant > 0;
            model.extra = extras[variant];
            tiny t = open_tiny(p, &model, MIX_BF16);
            save_tiny(p, &t);
            check_same_weights(p, &t);
            checkpoint_close(t.ck);
        }
}

static void layout_gguf_llama3_factors_come_back(void **state) {
    place *p = *state;
    make_model model = make_tiny(ARCH_LLAMA);
    model.extra = "\"rope_theta\": 500000.0, \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8.0, "
                  "\"low_freq_factor\": 1.0,"
                  "\"high_freq_factor\": 4.0, \"original_max_position_embeddings\": 8192}";
    tiny t = open_tiny(p, &model, MIX_BF16);
    assert_int_equal(t.plan.count, checkpoint_count(t.ck) + 1);
    save_tiny(p, &t);
    check_same_weights(p, &t);
    checkpoint_close(t.ck);
}

/* The values of Llama 3.1: pairs 0 .. 28 turn fast and stay, from 36 on they are divided by 8. */
static void trap32_rope_factors_of_llama_3(void **state) {
    place *p = *state;
    model_config config = parse(llama_8b, p->arena);
    float factors[64];
    gguf_rope_factors(&config, factors);
    assert_true(factors[0] == 1 && factors[28] == 1 && factors[35] == 8 && factors[63] == 8);
    for (int i = 29; i < 35; i++) assert_true(factors[i] > factors[i - 1] && factors[i] < 8);
}

static void check_rows(place *p, arch which, bool moved) {
    make_model model = make_tiny(which);
    model.head_dim = 8, model.heads = 4, model.kv_heads = 2;
    tiny t = open_tiny(p, &model, MIX_F16);
    save_tiny(p, &t);
    gguf_file file;
    assert_ok(gguf_open(p->path, p->arena, &file));
    static const int order[8] = {0, 4, 1, 5, 2, 6, 3, 7};
    static const char *const names[] = {"q", "k", "v"};
    for (int i = 0; i < 3; i++) {
        char name[64], source[64];
        float rows[4 * 8 * 64], truth[4 * 8 * 64];
        snprintf(name, sizeof name, "blk.1.attn_%s.weight", names[i]);
        snprintf(source, sizeof source, "model.layers.1.self_attn.%s_proj.weight", names[i]);
        gguf_entry e = {.source = source, .n = i ? 16 : 32, .k = 64};
        assert_ok(gguf_values_of_checkpoint(t.ck, &e, truth));
        assert_ok(gguf_decode(p->ctx, &file, gguf_find(&file, name), 0, rows)); /* as they lie in the file */
        for (int64_t r = 0; r < e.n; r++) {
            int64_t from = i == 2 || !moved ? r : r / 8 * 8 + order[r % 8];
            for (int c = 0; c < 64; c++)
                if (fabsf(rows[r * 64 + c] - truth[from * 64 + c]) > 1e-3f) fail_msg("%s: row %d", name, (int)r);
        }
    }
    gguf_close(&file);
    checkpoint_close(t.ck);
}

/* A head of 8 rows: new order 0, 4, 1, 5, 2, 6, 3, 7; of k by its own heads, of other architectures not at all. */
static void trap30_rows_of_q_and_k(void **state) {
    check_rows(*state, ARCH_LLAMA, true);
    check_rows(*state, ARCH_MISTRAL, true); /* llama.cpp runs it as llama */
    check_rows(*state, ARCH_QWEN2, false);
    check_rows(*state, ARCH_QWEN3, false);
}

/* ---- what a loader finds ------------------------------------------------------------------------------------------------------- */

static void trap31_dimensions_are_reversed(void **state) {
    place *p = *state;
    make_model model = make_tiny(ARCH_LLAMA); /* hidden 64, q 128, k and v 64, intermediate 128, vocabulary 96 */
    tiny t = open_tiny(p, &model, MIX_Q8_0);
    gguf_file file;
    save_tiny(p, &t);
    assert_ok(gguf_open(p->path, p->arena, &file));
    static const struct {
        const char *name;
        int64_t k, n;
    } known[] = {{"token_embd.weight", 64, 96},         {"output.weight", 64, 96},
                 {"blk.0.attn_q.weight", 64, 128},      {"blk.1.attn_k.weight", 64, 64},
                 {"blk.0.attn_output.weight", 128, 64}, {"blk.1.ffn_up.weight", 64, 128},
                 {"blk.0.ffn_down.weight", 128, 64},    {"output_norm.weight", 64, 1}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        const gguf_tensor *found = gguf_find(&file, known[i].name);
        assert_non_null(found);
        assert_int_equal(found->ne[0], known[i].k), assert_int_equal(found->ne[1], known[i].n);
    }
    gguf_close(&file);
    checkpoint_close(t.ck);
}

/* Of a kind that llama.cpp accepts: it refuses a f32 written as f64, and an u32 as i64. */
static void key_is(const gguf_file *file, const char *name, gguf_kind kind, double value) {
    const gguf_key *key = gguf_key_of(file, name);
    if (!key || key->kind != kind) fail_msg("%s is %s", name, key ? gguf_kind_name(key->kind) : "missing");
    uint32_t integer;
    float real;
    memcpy(&integer, key->value, 4), memcpy(&real, key->value, 4);
    double found = kind == GGUF_F32 ? (double)real : (double)integer;
    if (found != value) fail_msg("%s is %g, expected %g", name, found, value);
}

static void trap32_trap33_keys_that_have_defaults_are_written(void **state) {
    place *p = *state;
    make_model model = make_tiny(ARCH_QWEN2);
    model.extra = "\"rope_theta\": 1000000.0, \"rms_norm_eps\": 1e-6";
    tiny t = open_tiny(p, &model, MIX_F16);
    gguf_file file;
    save_tiny(p, &t);
    assert_ok(gguf_open(p->path, p->arena, &file));
    key_is(&file, "qwen2.rope.freq_base", GGUF_F32, 1e6);
    key_is(&file, "qwen2.attention.head_count", GGUF_U32, 4),
        key_is(&file, "qwen2.attention.head_count_kv", GGUF_U32, 2);
    key_is(&file, "qwen2.attention.layer_norm_rms_epsilon", GGUF_F32, 1e-6f);
    key_is(&file, "qwen2.attention.key_length", GGUF_U32, 32),
        key_is(&file, "qwen2.attention.value_length", GGUF_U32, 32);
    key_is(&file, "qwen2.block_count", GGUF_U32, 2), key_is(&file, "qwen2.embedding_length", GGUF_U32, 64);
    key_is(&file, "qwen2.feed_forward_length", GGUF_U32, 128), key_is(&file, "qwen2.context_length", GGUF_U32, 128);
    gguf_close(&file);
    checkpoint_close(t.ck);
}

static void trap35_head_is_there_unless_it_is_tied(void **state) {
    place *p = *state;
    for (int tied = 0; tied < 2; tied++) {
        make_model model = make_tiny(ARCH_LLAMA);
        model.tied_embeddings = tied, model.hidden = 256;
        tiny t = open_tiny(p, &model, MIX_Q4_0);
        assert_string_equal(type_in(&t.plan, "output.weight"), tied ? "absent" : "Q6_K");
        assert_string_equal(type_in(&t.plan, "token_embd.weight"), tied ? "Q6_K" : "Q4_0");
        checkpoint_close(t.ck);
    }
}

static void trap36_vectors_are_f32_in_every_mix(void **state) {
    place *p = *state;
    make_model model = make_tiny(ARCH_QWEN2); /* with biases */
    for (gguf_mix mix = 0; mix < GGUF_MIX_COUNT; mix++) {
        tiny t = open_tiny(p, &model, mix);
        int vectors = 0;
        for (int64_t i = 0; i < t.plan.count; i++) {
            const gguf_tensor *tensor = &t.plan.entries[i].tensor;
            if (tensor->rank > 1) continue;
            assert_string_equal(tensor->type->name, "F32");
            vectors++;
        }
        assert_int_equal(vectors, 1 + 2 * (2 + 3));
        checkpoint_close(t.ck);
    }
}

/* The numbers of llama.h, and the version of the blocks, which front ends show. */
static void trap43_file_type_is_that_of_the_mix(void **state) {
    place *p = *state;
    static const struct {
        const char *mix;
        uint32_t file_type;
    } known[] = {{"F16", 1},     {"Q4_0", 2},    {"Q4_1", 3},    {"Q8_0", 7},    {"Q5_0", 8},    {"Q5_1", 9},
                 {"Q2_K", 10},   {"Q3_K_S", 11}, {"Q3_K_M", 12}, {"Q3_K_L", 13}, {"Q4_K_S", 14}, {"Q4_K_M", 15},
                 {"Q5_K_S", 16}, {"Q5_K_M", 17}, {"Q6_K", 18},   {"IQ4_NL", 25}, {"BF16", 32}};
    assert_int_equal(sizeof known / sizeof *known, GGUF_MIX_COUNT);
    make_model model = make_tiny(ARCH_LLAMA);
    for (size_t i = 0; i < GGUF_MIX_COUNT; i++) {
        tiny t = open_tiny(p, &model, gguf_mix_of(known[i].mix));
        gguf_file file;
        save_tiny(p, &t);
        assert_ok(gguf_open(p->path, p->arena, &file));
        key_is(&file, "general.file_type", GGUF_U32, known[i].file_type);
        gguf_close(&file);
        checkpoint_close(t.ck);
    }
}

static ql_status verify_all(const gguf_file *file, const gguf_plan *plan, const gguf_source *source) {
    double error;
    for (int64_t i = 0; i < plan->count; i++) {
        const gguf_entry *e = &plan->entries[i];
        QL_TRY(gguf_verify_tensor(file, plan, source, e, &error));
        assert_true(error <= gguf_most_error(e->tensor.type));
    }
    return QL_OK;
}

static void layout_gguf_verify_sees_damage(void **state) {
    place *p = *state;
    make_model model = make_tiny(ARCH_LLAMA);
    model.hidden = 256, model.intermediate = 256;
    for (gguf_mix mix = 0; mix < GGUF_MIX_COUNT; mix += 3) { /* every third: time */
        gguf_file file;
        tiny t = open_tiny(p, &model, mix);
        save_tiny(p, &t);
        assert_ok(gguf_open(p->path, p->arena, &file));
        assert_ok(verify_all(&file, &t.plan, &t.source));
        t.plan.entries[2].heads = 0; /* q, not moved back */
        assert_refused(verify_all(&file, &t.plan, &t.source), QL_FORMAT, "\"blk.0.attn_q.weight\" is 1");
        gguf_plan other;
        assert_ok(gguf_plan_make(&t.config, mix == MIX_F16 ? MIX_BF16 : MIX_F16, false, p->arena, &other));
        assert_refused(verify_all(&file, &other, &t.source), QL_FORMAT, "expected");
        gguf_close(&file);
        checkpoint_close(t.ck);
    }
}

/* The same calls write the same bytes; importance changes them. */
static void layout_gguf_importance_is_used(void **state) {
    place *p = *state;
    make_model model = make_tiny(ARCH_QWEN3);
    model.hidden = 256;
    tiny t = open_tiny(p, &model, MIX_Q4_K_M);
    float mean[256];
    for (int i = 0; i < 256; i++) mean[i] = i % 7 ? 0.1f : 10.0f;
    imatrix_entry entry = {.name = "blk.0.attn_q.weight", .k = 256, .mean = mean, .count = 1};
    imatrix weights = {&entry, 1, "", 1, 1};
    unsigned char hash[3][32];
    for (int i = 0; i < 3; i++) {
        t.source.weights = i == 2 ? &weights : NULL;
        save_tiny(p, &t);
        assert_ok(ql_file_sha256(p->path, hash[i]));
    }
    assert_memory_equal(hash[0], hash[1], 32);
    assert_memory_not_equal(hash[0], hash[2], 32);
    entry.k = 255;
    gguf_meta none = {0};
    assert_refused(gguf_save(p->path, &t.plan, &none, &t.source, NULL), QL_MISMATCH,
                   "has 256 inputs, its importance 255");
    checkpoint_close(t.ck);
}

static ql_status same_value(void *user, const gguf_entry *e, float *w) {
    for (int64_t i = 0; i < e->n * e->k; i++) w[i] = *(const float *)user;
    return QL_OK;
}

static void trap41_values_that_it_cannot_hold_are_refused(void **state) {
    place *p = *state;
    make_model model = make_tiny(ARCH_LLAMA);
    gguf_meta none = {0};
    float value = 1e7f;
    (void)remove(p->path);
    tiny t = open_tiny(p, &model, MIX_Q4_0);
    t.source = (gguf_source){same_value, &value, p->ctx, NULL, NULL};
    assert_refused(gguf_save(p->path, &t.plan, &none, &t.source, NULL), QL_MISMATCH,
                   "\"token_embd.weight\": row 0 has values whose scale does not fit");
    value = INFINITY;
    assert_refused(gguf_save(p->path, &t.plan, &none, &t.source, NULL), QL_FORMAT, "is not finite at row 0, column 0");
    checkpoint_close(t.ck);
    t = open_tiny(p, &model, MIX_F16);
    value = 70000;
    t.source = (gguf_source){same_value, &value, p->ctx, NULL, NULL};
    assert_refused(gguf_save(p->path, &t.plan, &none, &t.source, NULL), QL_MISMATCH, "70000 does not fit into F16");
    checkpoint_close(t.ck);
    assert_false(ql_path_exists(p->path));
}

/* ---- tokenizers -------------------------------------------------------------------------------------------------------------------- */

/* The keys as a reader finds them; element i of an array of strings or of 4-byte numbers. */
static const uint8_t *element(const gguf_file *file, const char *name, uint64_t i, uint64_t *size) {
    const gguf_key *key = gguf_key_of(file, name);
    assert_non_null(key);
    assert_true(key->kind == GGUF_ARRAY && i < key->count);
    if (key->element != GGUF_STRING) return *size = 4, key->value + 4 * i;
    const uint8_t *at = key->value;
    for (uint64_t j = 0;; j++) {
        memcpy(size, at, 8);
        if (j == i) return at + 8;
        at += 8 + *size;
    }
}

static void text_is(const gguf_file *file, const char *name, uint64_t i, const char *text) {
    uint64_t size;
    const uint8_t *found = element(file, name, i, &size);
    if (size != strlen(text) || memcmp(found, text, size) != 0)
        fail_msg("%s[%d] is \"%.*s\", expected \"%s\"", name, (int)i, (int)size, (const char *)found, text);
}

static void kind_is(const gguf_file *file, uint64_t i, int32_t kind) {
    uint64_t size;
    int32_t found;
    memcpy(&found, element(file, "tokenizer.ggml.token_type", i, &size), 4);
    assert_int_equal(found, kind);
}

static void score_is(const gguf_file *file, uint64_t i, float score) {
    uint64_t size;
    float found;
    memcpy(&found, element(file, "tokenizer.ggml.scores", i, &size), 4);
    assert_true(found == score);
}

static void string_is(place *p, const gguf_file *file, const char *name, const char *text) {
    char *found;
    assert_ok(gguf_string(file, name, p->arena, &found));
    assert_string_equal(found, text);
}

static void int_is(const gguf_file *file, const char *name, int64_t value) {
    int64_t found;
    assert_ok(gguf_int(file, name, 0, INT32_MAX, &found));
    assert_int_equal(found, value);
}

/* The tokenizer keys of a directory as a file without tensors. */
static ql_status tokenizer_file(place *p, const char *dir, int64_t vocab, gguf_file *file) {
    checkpoint *ck;
    gguf_meta meta = {0};
    gguf_writer *writer;
    assert_ok(checkpoint_open(dir, &ck));
    ql_status status = gguf_tokenizer(ck, vocab, &meta);
    checkpoint_close(ck);
    if (status == QL_OK) {
        assert_ok(gguf_writer_open(p->path, &meta, NULL, 0, &writer));
        assert_ok(gguf_writer_commit(writer, NULL));
        assert_ok(gguf_open(p->path, p->arena, file));
    }
    gguf_meta_free(&meta);
    return status;
}

/* The demo model has both files: pieces, scores and kinds of SentencePiece count. */
static void trap34_tokenizer_of_pieces(void **state) {
    place *p = *state;
    gguf_file file;
    uint64_t size;
    assert_ok(tokenizer_file(p, "demo/model", 4098, &file)); /* two rows more than tokens */
    string_is(p, &file, "tokenizer.ggml.model", "llama");
    string_is(p, &file, "tokenizer.ggml.pre", "default");
    text_is(&file, "tokenizer.ggml.tokens", 0, "<unk>"), kind_is(&file, 0, 2);
    text_is(&file, "tokenizer.ggml.tokens", 1, "<s>"), kind_is(&file, 1, 3);
    text_is(&file, "tokenizer.ggml.tokens", 3, "<0x00>"), kind_is(&file, 3, 6);
    element(&file, "tokenizer.ggml.tokens", 4095, &size), kind_is(&file, 4095, 1);
    text_is(&file, "tokenizer.ggml.tokens", 4097, "[PAD4097]"), kind_is(&file, 4097, 5);
    score_is(&file, 4097, -10000);
    assert_null(gguf_key_of(&file, "tokenizer.ggml.merges"));
    int_is(&file, "tokenizer.ggml.bos_token_id", 1), int_is(&file, "tokenizer.ggml.eos_token_id", 2);
    int_is(&file, "tokenizer.ggml.unknown_token_id", 0);
    assert_int_equal(*gguf_key_of(&file, "tokenizer.ggml.add_bos_token")->value, 1);
    gguf_close(&file);
    assert_int_equal(tokenizer_file(p, "demo/model", 4000, &file), QL_MISMATCH); /* a row is missing */
}

static void make_bpe(place *p, const char *pre, const char *model) {
    char text[4096];
    make_model tiny_model = make_tiny(ARCH_LLAMA);
    assert_ok(make_checkpoint(p->dir, &tiny_model));
    snprintf(text, sizeof text,
             "{\"added_tokens\": [{\"id\": 6, \"content\": \"<|end|>\", \"special\": false},"
             "{\"id\": 7, \"content\": \"<tool>\", \"special\": false}, {\"id\": 8, \"content\": \"</s>\", "
             "\"special\": true}],"
             "\"pre_tokenizer\": %s, \"model\": {\"type\": \"BPE\", %s}}",
             pre, model);
    make_text(p->dir, "tokenizer.json", text);
    make_text(
        p->dir, "tokenizer_config.json",
        "{\"eos_token\": {\"content\": \"</s>\"}, \"add_bos_token\": false, \"chat_template\": [{\"name\": \"other\","
        "\"template\": \"no\"}, {\"name\": \"default\", \"template\": \"yes\"}]}");
}

#define SPLIT(digits)                                                                                                  \
    "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": "                     \
    "\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"                                                                                  \
    "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|" digits                                                                  \
    "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"}},"                        \
    "{\"type\": \"ByteLevel\", \"use_regex\": false}]}"
static const char bytes_model[] =
    "\"vocab\": {\"a\": 0, \"b\": 1, \"c\": 2, \"ab\": 3, \"\\u0120ab\": 4, \"\\u0120\": 5},"
    "\"merges\": [\"a b\", [\"\\u0120\", \"ab\"], [\"a b\", \"c\"]]";

static void trap34_tokenizer_of_bytes(void **state) {
    place *p = *state;
    gguf_file file;
    make_bpe(p, SPLIT("\\\\p{N}{1,3}"), bytes_model);
    assert_ok(tokenizer_file(p, p->dir, 10, &file));
    string_is(p, &file, "tokenizer.ggml.model", "gpt2");
    string_is(p, &file, "tokenizer.ggml.pre", "llama-bpe");
    text_is(&file, "tokenizer.ggml.tokens", 4,
            "\xc4\xa0"
            "ab"),
        kind_is(&file, 4, 1);
    kind_is(&file, 6, 3), kind_is(&file, 7, 4), kind_is(&file, 8, 3), kind_is(&file, 9, 5);
    text_is(&file, "tokenizer.ggml.merges", 0, "a b");
    text_is(&file, "tokenizer.ggml.merges", 1, "\xc4\xa0 ab");
    text_is(&file, "tokenizer.ggml.merges", 2,
            "a\xc4\xa0"
            "b c");
    assert_null(gguf_key_of(&file, "tokenizer.ggml.scores"));
    int_is(&file, "tokenizer.ggml.eos_token_id", 8);
    string_is(p, &file, "tokenizer.chat_template", "yes");
    gguf_close(&file);
    make_bpe(p, SPLIT("\\\\p{N}"), bytes_model);
    assert_ok(tokenizer_file(p, p->dir, 10, &file));
    string_is(p, &file, "tokenizer.ggml.pre", "qwen2");
    gguf_close(&file);
    make_bpe(p, "{\"type\": \"ByteLevel\"}", bytes_model);
    assert_ok(tokenizer_file(p, p->dir, 10, &file));
    string_is(p, &file, "tokenizer.ggml.pre", "gpt-2");
    gguf_close(&file);
}

/* Characters with a fallback to bytes are SentencePiece without its scores: the rank of the merge stands for them. */
static void trap34_tokenizer_of_characters(void **state) {
    place *p = *state;
    gguf_file file;
    make_bpe(p, "null",
             "\"byte_fallback\": true, \"unk_token\": \"<unk>\", \"vocab\": {\"<unk>\": 0, \"<0x41>\": 1, \"a\": 2, "
             "\"b\": 3,"
             "\"ab\": 4, \"aba\": 5}, \"merges\": [\"a b\", \"ab a\"]");
    assert_ok(tokenizer_file(p, p->dir, 10, &file));
    string_is(p, &file, "tokenizer.ggml.model", "llama");
    kind_is(&file, 0, 2), kind_is(&file, 1, 6), kind_is(&file, 2, 1);
    score_is(&file, 4, 0), score_is(&file, 5, -1), score_is(&file, 2, -3);
    gguf_close(&file);
}

static void tokenizer_refused(void **state) {
    place *p = *state;
    gguf_file file;
    const struct {
        const char *pre, *model, *words;
        ql_status status;
    } bad[] = {
        {SPLIT("\\\\p{N}{1,4}"), bytes_model, "no name that qalib knows", QL_MISMATCH},
        {"null", bytes_model, "split by \"nothing\"", QL_MISMATCH},
        {"null", "\"type\": \"Unigram\"", "type", QL_FORMAT}, /* a key twice */
        {"null", "\"vocab\": {\"a\": \"x\"}, \"merges\": []", "the id of \"a\" is no integer", QL_FORMAT},
        {"null", "\"vocab\": {\"a\": 10}, \"merges\": []", "token 10 \"a\", the embedding has 10 rows", QL_MISMATCH},
        {"null", "\"vocab\": {\"a\": -1}, \"merges\": []", "token -1", QL_MISMATCH},
        {"null", "\"vocab\": [], \"merges\": []", "\"vocab\" is an array", QL_FORMAT},
        {"null", "\"vocab\": {}, \"merges\": 3", "\"merges\" is", QL_FORMAT},
        {"null", "\"vocab\": {}, \"merges\": [\"ab\"]", "a merge without a space", QL_FORMAT},
        {"null", "\"vocab\": {}, \"merges\": [[\"a\"]]", "no pair of strings", QL_FORMAT},
        {"null", "\"byte_fallback\": true, \"vocab\": {\"a\": 0}, \"merges\": [\"a a\"]",
         "makes \"aa\", which is no token", QL_FORMAT},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        make_bpe(p, bad[i].pre, bad[i].model);
        assert_refused(tokenizer_file(p, p->dir, 10, &file), bad[i].status, bad[i].words);
    }
    make_bpe(p, SPLIT("\\\\p{N}"), bytes_model);
    make_file(p->dir, "chat_template.jinja", "\xff", 1);
    assert_refused(tokenizer_file(p, p->dir, 10, &file), QL_FORMAT, "chat_template.jinja: not UTF-8");
    make_text(p->dir, "chat_template.jinja", "own");
    assert_ok(tokenizer_file(p, p->dir, 10, &file));
    string_is(p, &file, "tokenizer.chat_template", "own");
    gguf_close(&file);
}

/* Pieces of SentencePiece's protobuf, byte by byte: field 1 is a piece of `length` bytes. */
static void tokenizer_model_refused(void **state) {
    place *p = *state;
    gguf_file file;
    static const struct {
        const char *bytes;
        size_t size;
        const char *words;
    } bad[] = {
        {"\x0a\x05\x61\x62", 4, "damaged"}, /* of 5 bytes 2 are there */
        {"\x0a\x00", 2, "piece 0 has no text"},
        {"\x0a\x03\x0a\x01\xff", 5, "piece 0 has a text that is not UTF-8"},
        {"\x0a\x03\x0a\x01\x00", 5, "piece 0 has a text that is not UTF-8"},
        {"\x0a\x08\x0a\x01\x61\x15\x00\x00\xc0\x7f", 10, "piece 0 has a score that is not finite"},
        {"\x0a\x05\x0a\x01\x61\x18\x07", 7, "piece 0 has an unknown kind"},
        {"\x12\x00", 2, "damaged"}, /* no piece at all */
        {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 11, "damaged"},
    };
    make_bpe(p, "null", bytes_model);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        make_file(p->dir, "tokenizer.model", bad[i].bytes, bad[i].size);
        assert_refused(tokenizer_file(p, p->dir, 10, &file), QL_FORMAT, bad[i].words);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layout_gguf_sizes_of_llama_8b),
        cmocka_unit_test(layout_gguf_falls_back),
        cmocka_unit_test(layout_gguf_names),
        cmocka_unit_test(layout_gguf_obstacles),
        cmocka_unit_test(layout_gguf_every_architecture_comes_back),
        cmocka_unit_test(layout_gguf_llama3_factors_come_back),
        cmocka_unit_test(trap32_rope_factors_of_llama_3),
        cmocka_unit_test(trap30_rows_of_q_and_k),
        cmocka_unit_test(trap31_dimensions_are_reversed),
        cmocka_unit_test(trap32_trap33_keys_that_have_defaults_are_written),
        cmocka_unit_test(trap35_head_is_there_unless_it_is_tied),
        cmocka_unit_test(trap36_vectors_are_f32_in_every_mix),
        cmocka_unit_test(trap43_file_type_is_that_of_the_mix),
        cmocka_unit_test(layout_gguf_verify_sees_damage),
        cmocka_unit_test(layout_gguf_importance_is_used),
        cmocka_unit_test(trap41_values_that_it_cannot_hold_are_refused),
        cmocka_unit_test(trap34_tokenizer_of_pieces),
        cmocka_unit_test(trap34_tokenizer_of_bytes),
        cmocka_unit_test(trap34_tokenizer_of_characters),
        cmocka_unit_test(tokenizer_refused),
        cmocka_unit_test(tokenizer_model_refused),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
