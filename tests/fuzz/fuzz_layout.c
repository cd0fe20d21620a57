/* A digit that names a quantized directory, then any bytes as its config.json; of kind 6: as the quant_state of its one module.  The
 * tensors are in order, so what is accepted must come to finite weights of the module's own shape. */
#include <math.h>
#include <string.h>

#include "formats/json.h"
#include "formats/layout.h"
#include "host/log.h"
#include "host/mat.h"
#include "host/rng.h"
#include "tests/fuzz/input.h"

#define MODULE "model.layers.0.self_attn.q_proj"
enum { N = 32, K = 64, KINDS = 7, STATE = 6 };

static const layout_scheme schemes[KINDS] = {
    {.layout = LAYOUT_GPTQ, .bits = 4, .group = 32, .version = 1, .desc_act = true},
    {.layout = LAYOUT_AWQ, .bits = 4, .group = 32},
    {.layout = LAYOUT_COMPRESSED, .bits = 4, .group = 32},
    {.layout = LAYOUT_COMPRESSED,
     .bits = 8,
     .group = GROUP_ROW,
     .symmetric = true,
     .bytes = true,
     .activations = ACTIVATIONS_TOKEN},
    {.layout = LAYOUT_FP8,
     .type = CODE_E4M3,
     .bits = 8,
     .group = FP8_BLOCK,
     .symmetric = true,
     .bytes = true,
     .activations = ACTIVATIONS_TOKEN},
    {.layout = LAYOUT_BITSANDBYTES, .type = CODE_NF4, .bits = 4, .group = 64, .symmetric = true},
    {.layout = LAYOUT_BITSANDBYTES, .type = CODE_NF4, .bits = 4, .group = 64, .symmetric = true},
};
static char root[64];

static void remove_root(void) { (void)ql_dir_remove(root); }

static void save(int kind, const char *name, const void *data, size_t size) {
    char path[128];
    snprintf(path, sizeof path, "%s/%d/%s", root, kind, name);
    FILE *file = fopen(path, "wb");
    require(file && fwrite(data, 1, size, file) == size && fclose(file) == 0);
}

static void fill_module(const layout_scheme *scheme, ql_arena *arena, qmodule *q) {
    int64_t group = scheme->group < 0 ? K : scheme->group, scales = N * ql_groups(K, group);
    *q = (qmodule){.name = MODULE, .n = N, .k = K, .type = scheme->type, .bits = scheme->bits, .group = group};
    require(ql_take(arena, (size_t)(N * ql_packed_words(K, q->bits)), 4, &q->codes) == QL_OK);
    require(ql_take(arena, (size_t)scales, 4, &q->scale) == QL_OK);
    require(ql_take(arena, (size_t)scales, 1, &q->zero) == QL_OK);
    uint8_t *codes = (uint8_t *)q->codes;
    for (int i = 0; i < N * K * q->bits / 8; i++) codes[i] = (uint8_t)(ql_random(1, (uint64_t)i) & 0x77);
    for (int64_t i = 0; i < scales; i++) q->scale[i] = 0x1p-6f, q->zero[i] = (uint8_t)(1u << (q->bits - 1));
    if (scheme->type == CODE_NF4) require(qmodule_nest(q, arena) == QL_OK);
}

/* The tensors of a directory; state: in place of the quant_state that belongs to them. */
static void save_tensors(int kind, const uint8_t *state, size_t state_size) {
    char path[128];
    ql_arena *arena;
    qmodule q;
    layout_tensors t;
    st_writer *writer;
    require(ql_arena_open(NULL, &arena) == QL_OK);
    fill_module(&schemes[kind], arena, &q);
    require(layout_encode(&schemes[kind], &q, arena, &t) == QL_OK);
    st_tensor sorted[LAYOUT_MAX_TENSORS];
    for (int i = 0; i < t.count; i++)
        if (state && strstr(t.tensor[i].name, "quant_state"))
            t.tensor[i].shape[0] = (int64_t)state_size, t.data[i] = (void *)(uintptr_t)state;
    memcpy(sorted, t.tensor, sizeof sorted);
    snprintf(path, sizeof path, "%s/%d/model.safetensors", root, kind);
    require(st_writer_open(path, sorted, t.count, NULL, &writer) == QL_OK);
    for (int s = 0; s < t.count; s++)
        for (int i = 0; i < t.count; i++)
            if (strcmp(sorted[s].name, t.tensor[i].name) == 0)
                require(st_writer_put(writer, &sorted[s], t.data[i]) == QL_OK);
    require(st_writer_commit(writer, NULL) == QL_OK);
    ql_arena_close(arena);
}

static void make_directories(void) {
    char path[80];
    ql_log_open(false, QL_ERROR);
    snprintf(root, sizeof root, "%s/qalib-fuzz-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    require(mkdtemp(root) != NULL);
    atexit(remove_root);
    for (int kind = 0; kind < KINDS; kind++) {
        snprintf(path, sizeof path, "%s/%d", root, kind);
        require(ql_dir_make(path) == QL_OK);
        save_tensors(kind, NULL, 0);
    }
    static const char state_config[] =
        "{\"quantization_config\": {\"quant_method\": \"bitsandbytes\", \"load_in_4bit\": true, "
        "\"bnb_4bit_quant_type\": \"nf4\", \"bnb_4bit_use_double_quant\": true}}";
    save(STATE, "config.json", state_config, sizeof state_config - 1);
}

static void check_module(const qmodule *q, ql_arena *arena) {
    float *w;
    require(q->n == N && q->k == K && q->bits >= 1 && q->bits <= 8 && q->group > 0);
    require(ql_take(arena, N * K, sizeof *w, &w) == QL_OK);
    qmodule_dequantize(q, w);
    for (int i = 0; i < N * K; i++) require(isfinite(w[i]));
}

static ql_status try(const checkpoint *ck, ql_arena *arena) {
    static const char *const others[] = {"lm_head", "model.layers.1.mlp.down_proj", "model.layers.10.mlp.up_proj"};
    layout_scheme scheme;
    layout_rule rule;
    qmodule q;
    json_t *config = NULL;
    QL_TRY(layout_read(ck, &scheme));
    for (int i = 0; i < 3; i++) (void)layout_rule_of(&scheme, others[i], &rule);
    for (int64_t i = 0; i < checkpoint_count(ck); i++) (void)layout_is_part(ck, &scheme, checkpoint_at(ck, i)->name);
    (void)layout_config(&scheme, &config);
    json_decref(config);
    QL_TRY(layout_decode(ck, &scheme, MODULE, N, K, arena, &q));
    check_module(&q, arena);
    return QL_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[80];
    ql_arena *arena;
    checkpoint *ck;
    if (!root[0]) make_directories();
    if (size < 2 || data[0] < '0' || data[0] >= '0' + KINDS) return 0;
    int kind = data[0] - '0';
    if (kind == STATE) save_tensors(kind, data + 1, size - 1);
    else save(kind, "config.json", data + 1, size - 1);
    snprintf(path, sizeof path, "%s/%d", root, kind);
    if (ql_arena_open(NULL, &arena) != QL_OK) return 0;
    if (checkpoint_open(path, &ck) == QL_OK) {
        (void)try(ck, arena);
        checkpoint_close(ck);
    }
    ql_arena_close(arena);
    return 0;
}
