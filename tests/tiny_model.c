#include "tests/tiny_model.h"

#include "tests/make.h"
#include "tests/test.h"

#include "formats/json.h"
#include "host/mat.h"
#include "host/num.h"

static const char config_text[] =
    "{\n  \"vocab_size\": 50,\n  \"model_type\": \"qwen2\",\n  \"architectures\": [\"Qwen2ForCausalLM\"],\n"
    "  \"hidden_size\": 64,\n  \"intermediate_size\": 96,\n  \"num_hidden_layers\": 2,\n  \"num_attention_heads\": 4,\n"
    "  \"num_key_value_heads\": 2,\n  \"hidden_act\": \"silu\",\n  \"max_position_embeddings\": 128,\n"
    "  \"rms_norm_eps\": 1e-05,\n  \"rope_theta\": 10000.0,\n  \"torch_dtype\": \"bfloat16\",\n"
    "  \"tie_word_embeddings\": %s,\n  \"use_sliding_window\": false\n}\n";

void tiny_save(const char *dir, const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_ok(ql_file_save(path, text, strlen(text)));
}

json_t *tiny_load(const char *dir, const char *name) {
    char path[512];
    json_t *document;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_ok(ql_json_load(path, 1 << 20, &document));
    return document;
}

char *tiny_read(const char *dir, const char *name, size_t *size, ql_arena *arena) {
    char path[512], *data;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    assert_ok(ql_file_load(path, 1 << 26, arena, &data, size));
    return data;
}

void tiny_write(const char *dir, const tiny_model *wish) {
    char text[2048];
    make_model model = make_tiny(ARCH_QWEN2);
    model.vocab = 50;
    model.intermediate = 96;
    model.head_dim = 16;
    model.tied_embeddings = wish->tied;
    model.dtype = wish->dtype;
    model.norm_weight = wish->norm_weight;
    assert_ok(ql_dir_make(dir));
    assert_ok(make_checkpoint(dir, &model));
    snprintf(text, sizeof text, config_text, wish->tied ? "true" : "false");
    tiny_save(dir, "config.json", text);
    tiny_save(dir, "tokenizer.json", "{\"model\": {}}\n");
    tiny_save(dir, "generation_config.json", "{\"eos_token_id\":   2}");
    tiny_save(dir, "LICENSE.txt", "free\n");
    tiny_save(dir, "README.md", "---\nlicense: apache-2.0\nlanguage: en\n---\n# tiny\n");
    tiny_save(dir, "notes.txt", "not carried over\n");
}

/* ---- rounding to nearest, written plainly -------------------------------------------------------------------------------------- */

static void round_group(qmodule *q, const float *w, int64_t row, int64_t g, bool symmetric) {
    int maxq = (1 << q->bits) - 1, zero = 1 << (q->bits - 1);
    int64_t groups = ql_groups(q->k, q->group), words = ql_packed_words(q->k, q->bits), first = g * q->group;
    float low = 0, high = 0;
    for (int64_t k = first; k < first + q->group; k++) low = fminf(low, w[k]), high = fmaxf(high, w[k]);
    float scale = symmetric ? 2 * fmaxf(-low, high) / (float)maxq : (high - low) / (float)maxq;
    scale = ql_round_f16(scale);
    if (!symmetric) zero = (int)fminf(fmaxf(roundf(-low / scale), 1), (float)maxq);
    q->scale[row * groups + g] = scale;
    q->zero[row * groups + g] = (uint8_t)zero;
    for (int64_t k = first; k < first + q->group; k++) {
        uint32_t code = (uint32_t)ql_encode(w[k], scale, zero, maxq);
        for (int b = 0; b < q->bits; b++)
            if (code >> b & 1) q->codes[row * words + (k * q->bits + b) / 32] |= 1u << (k * q->bits + b) % 32;
    }
}

static void round_module(const checkpoint *ck, qmodule *q, bool symmetric, ql_arena *arena) {
    char name[NAME_SIZE + 8];
    snprintf(name, sizeof name, "%s.weight", q->name);
    const st_tensor *tensor = checkpoint_find(ck, name);
    assert_non_null(tensor);
    void *raw;
    float *w;
    size_t count = (size_t)(q->n * q->k), groups = (size_t)(q->n * ql_groups(q->k, q->group));
    assert_ok(ql_arena_take(arena, tensor->size, 1, &raw));
    assert_ok(checkpoint_read(ck, tensor, raw));
    assert_ok(ql_take(arena, count, sizeof *w, &w));
    for (size_t i = 0; i < count; i++)
        w[i] = tensor->dtype == QL_F32   ? ((float *)raw)[i]
               : tensor->dtype == QL_F16 ? ql_f16_to_f32(((uint16_t *)raw)[i])
                                         : ql_bf16_to_f32(((uint16_t *)raw)[i]);
    assert_ok(ql_take(arena, (size_t)(q->n * ql_packed_words(q->k, q->bits)), sizeof *q->codes, &q->codes));
    assert_ok(ql_take(arena, groups, sizeof *q->scale, &q->scale));
    assert_ok(ql_take(arena, groups, sizeof *q->zero, &q->zero));
    for (int64_t n = 0; n < q->n; n++)
        for (int64_t g = 0; g < ql_groups(q->k, q->group); g++) round_group(q, w + n * q->k, n, g, symmetric);
}

void tiny_quantize(const checkpoint *ck, const model_config *config, int64_t layer, const layout_scheme *scheme,
                   ql_arena *arena, qmodule modules[LINEARS]) {
    for (int id = 0; id < LINEARS; id++) {
        char name[NAME_SIZE], *copy;
        layout_rule rule;
        qmodule *q = &modules[id];
        module_name(name, layer, (linear_id)id);
        assert_ok(layout_rule_of(scheme, name, &rule));
        *q = (qmodule){.bits = rule.bits};
        if (rule.skipped) continue;
        assert_ok(ql_arena_string(arena, name, &copy));
        q->name = copy;
        linear_shape(config, (linear_id)id, &q->n, &q->k);
        q->group = rule.group == -1 ? q->k : rule.group;
        round_module(ck, q, scheme->symmetric, arena);
    }
}
