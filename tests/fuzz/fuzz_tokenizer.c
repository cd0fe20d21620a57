/* Any bytes as tokenizer.json where they begin with a brace, else as tokenizer.model, beside a checkpoint without weights.  What is
 * accepted becomes keys that a reader of GGUF takes: for every row of the embedding a token of UTF-8, of a known kind, with a finite score. */
#include <jansson.h>
#include <math.h>
#include <string.h>

#include "formats/checkpoint.h"
#include "formats/layout_gguf.h"
#include "host/log.h"
#include "tests/fuzz/input.h"

enum { VOCAB = 40 };
static char dir[64];

static void remove_dir(void) { (void)ql_dir_remove(dir); }

static void save(const char *name, const void *data, size_t size) {
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *file = fopen(path, "wb");
    require(file && fwrite(data, 1, size, file) == size && fclose(file) == 0);
}

static checkpoint *make_checkpoint(void) {
    static const char words[] = "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"}}";
    static const uint8_t no_tensors[10] = {2, 0, 0, 0, 0, 0, 0, 0, '{', '}'};
    checkpoint *ck;
    ql_log_open(false, QL_ERROR);
    snprintf(dir, sizeof dir, "%s/qalib-fuzz-XXXXXX", access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    require(mkdtemp(dir) != NULL);
    atexit(remove_dir);
    save("config.json", "{}", 2), save("tokenizer_config.json", words, sizeof words - 1);
    save("model.safetensors", no_tensors, sizeof no_tensors);
    require(checkpoint_open(dir, &ck) == QL_OK);
    return ck;
}

/* jansson's opinion, not that of the code that is tested. */
static void require_text(const uint8_t *text, uint64_t size) {
    json_t *string = json_stringn((const char *)text, size);
    require(string != NULL);
    json_decref(string);
}

/* A GGUF file without tensors, put together here: the writer of files is not what is asked. */
static void check(const gguf_meta *meta, ql_arena *arena) {
    static const uint8_t head[16] = {'G', 'G', 'U', 'F', 3};
    uint8_t *bytes;
    gguf_file file;
    require(ql_take(arena, 24 + meta->size, 1, &bytes) == QL_OK);
    memcpy(bytes, head, sizeof head), memcpy(bytes + 16, &meta->count, 8), memcpy(bytes + 24, meta->bytes, meta->size);
    const char *path = input_file(bytes, 24 + meta->size);
    if (!path) return;
    require(gguf_open(path, arena, &file) == QL_OK);
    const gguf_key *tokens = gguf_key_of(&file, "tokenizer.ggml.tokens"),
                   *kinds = gguf_key_of(&file, "tokenizer.ggml.token_type"),
                   *scores = gguf_key_of(&file, "tokenizer.ggml.scores");
    require(tokens && kinds && tokens->count == VOCAB && kinds->count == VOCAB);
    require(!scores || scores->count == VOCAB);
    const uint8_t *token = tokens->value;
    for (int i = 0; i < VOCAB; i++) {
        uint64_t length;
        int32_t kind;
        float score = 0;
        memcpy(&kind, kinds->value + 4 * i, 4);
        if (scores) memcpy(&score, scores->value + 4 * i, 4);
        require(kind >= 1 && kind <= 6 && isfinite(score));
        memcpy(&length, token, 8);
        require_text(token + 8, length);
        token += 8 + length;
    }
    gguf_close(&file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static checkpoint *ck;
    ql_arena *arena;
    gguf_meta meta = {0};
    if (!ck) ck = make_checkpoint();
    const char *name = size && data[0] == '{' ? "tokenizer.json" : "tokenizer.model";
    char path[128];
    save(name, data, size);
    if (ql_arena_open(NULL, &arena) != QL_OK) return 0;
    if (gguf_tokenizer(ck, VOCAB, &meta) == QL_OK) check(&meta, arena);
    gguf_meta_free(&meta);
    ql_arena_close(arena);
    snprintf(path, sizeof path, "%s/%s", dir, name);
    require(unlink(path) == 0);
    return 0;
}
