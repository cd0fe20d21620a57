/* Model directories: which files are read, and every way in which an index or a directory can lie. */
#include "tests/test.h"

#include <sys/stat.h>
#include <unistd.h>

#include "formats/json.h"
#include "host/fault.h"
#include "host/num.h"
#include "tests/make.h"

#define INDEX "model.safetensors.index.json"

static char dir[MAKE_PATH];

static int setup(void **state) {
    (void)state;
    make_dir(dir);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    return ql_dir_remove(dir) == QL_OK ? 0 : -1;
}

static ql_status try(void) {
    checkpoint *ck;
    ql_status status = checkpoint_open(dir, &ck);
    if (status != QL_OK) assert_null(ck);
    checkpoint_close(ck);
    return status;
}

static const char *in_dir(const char *name) {
    static char path[MAKE_PATH + 128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static void make_shards(int shards) {
    make_model model = make_tiny(ARCH_LLAMA);
    model.shards = shards;
    assert_ok(make_checkpoint(dir, &model));
}

/* A file of one U8 tensor for each letter of `letters`. */
static void make_letters(const char *name, const char *letters) {
    st_tensor tensors[8] = {{0}};
    char names[8][2] = {{0}};
    int64_t count = (int64_t)strlen(letters);
    for (int64_t i = 0; i < count; i++) {
        names[i][0] = letters[i];
        tensors[i] = (st_tensor){.name = names[i], .dtype = QL_U8, .rank = 0};
    }
    st_writer *writer;
    assert_ok(st_writer_open(in_dir(name), tensors, count, NULL, &writer));
    for (int64_t i = 0; i < count; i++) assert_ok(st_writer_put(writer, &tensors[i], tensors[i].name));
    assert_ok(st_writer_commit(writer, NULL));
}

static void check_all_values(const make_model *model, const model_config *config, const checkpoint *ck) {
    for (int64_t i = 0; i < checkpoint_count(ck); i++) {
        char name[NAME_SIZE];
        int64_t shape[2];
        model_tensor(config, i, name, shape);
        const st_tensor *tensor = checkpoint_find(ck, name);
        assert_non_null(tensor);
        assert_int_equal(tensor->shape[0], shape[0]);
        assert_int_equal(tensor->shape[1], shape[1]);
        int64_t k = shape[1] ? shape[1] : shape[0], count = (int64_t)(tensor->size / ql_dtype_size(tensor->dtype));
        uint16_t *data = malloc(tensor->size);
        assert_ok(checkpoint_read(ck, tensor, data));
        for (int64_t j = 0; j < count; j++)
            assert_int_equal(data[j], ql_f32_to_bf16((float)make_value(model->seed, name, k, j)));
        free(data);
    }
}

static void shards_read_like_one_file(void **state) {
    (void)state;
    for (int shards = 1; shards <= 5; shards += 2) {
        make_model model = make_tiny(ARCH_QWEN3);
        model.shards = shards;
        assert_ok(ql_dir_remove(dir));
        assert_ok(ql_dir_make(dir));
        assert_ok(make_checkpoint(dir, &model));
        checkpoint *ck;
        ql_arena *arena;
        model_config config;
        assert_ok(ql_arena_open(NULL, &arena));
        assert_ok(checkpoint_open(dir, &ck));
        assert_ok(model_config_parse(checkpoint_config(ck), "config.json", arena, &config));
        assert_int_equal(checkpoint_file_count(ck), shards);
        assert_int_equal(checkpoint_count(ck), model_tensor(&config, 0, NULL, NULL));
        check_all_values(&model, &config, ck);
        uint64_t bytes = 0;
        for (int64_t i = 0; i < checkpoint_count(ck); i++) {
            bytes += checkpoint_at(ck, i)->size;
            if (i) assert_true(strcmp(checkpoint_at(ck, i - 1)->name, checkpoint_at(ck, i)->name) < 0);
        }
        assert_int_equal(checkpoint_bytes(ck), bytes);
        assert_null(checkpoint_find(ck, "model.layers.7.mlp.up_proj.weight"));
        checkpoint_close(ck);
        ql_arena_close(arena);
    }
}

static void a_single_file_may_have_any_name(void **state) {
    (void)state;
    make_text(dir, "config.json", "{}");
    make_letters("gptq_model-4bit-128g.safetensors", "ab");
    assert_ok(try());
    make_letters("other.safetensors", "c");
    assert_refused(try(), QL_MISSING, "2 safetensors files, but no " INDEX);
    make_letters("model.safetensors", "d"); /* the standard name decides */
    assert_ok(try());
}

static void missing_parts_are_named(void **state) {
    (void)state;
    assert_refused(try(), QL_MISSING, "no config.json");
    make_text(dir, "config.json", "{}");
    assert_refused(try(), QL_MISSING, "no safetensors file");
    make_text(dir, "pytorch_model.bin", "PK");
    assert_refused(try(), QL_FORMAT, "pytorch_model.bin, a Python pickle");
    unlink(in_dir("pytorch_model.bin"));
    make_text(dir, "model-q4.gguf", "GGUF");
    assert_refused(try(), QL_FORMAT, "model-q4.gguf");
    checkpoint *ck;
    assert_refused(checkpoint_open(in_dir("nowhere"), &ck), QL_MISSING, "nowhere");
    assert_refused(checkpoint_open(in_dir("config.json"), &ck), QL_MISSING, "config.json");
}

static void bad_configs_are_refused(void **state) {
    (void)state;
    make_letters("model.safetensors", "a");
    make_text(dir, "config.json", "{\"a\":1,}");
    assert_refused(try(), QL_FORMAT, "config.json: line 1, column 8");
    size_t size = (16 << 20) + 1;
    char *text = malloc(size);
    memset(text, ' ', size);
    memcpy(text, "{}", 2);
    make_file(dir, "config.json", text, size);
    assert_refused(try(), QL_FORMAT, "at most 16777216");
    make_file(dir, "config.json", text, size - 1);
    assert_ok(try());
    free(text);
    unlink(in_dir("config.json"));
    assert_int_equal(mkfifo(in_dir("config.json"), 0600), 0);
    assert_refused(try(), QL_FORMAT, "not a regular file");
    unlink(in_dir("config.json"));
    assert_int_equal(mkdir(in_dir("config.json"), 0700), 0);
    assert_refused(try(), QL_FORMAT, "not a regular file");
}

static void index_names_must_be_plain(void **state) {
    (void)state;
    static const char *const names[] = {
        "../../etc/passwd", "/etc/passwd", "sub/a.safetensors", "..", ".", "", "a/../b"};
    make_text(dir, "config.json", "{}");
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char text[256];
        snprintf(text, sizeof text, "{\"weight_map\":{\"a\":\"%s\"}}", names[i]);
        make_text(dir, INDEX, text);
        assert_refused(try(), QL_FORMAT, "expected a file of the directory");
    }
    make_text(dir, INDEX, "{\"weight_map\":{\"a\":3}}");
    assert_refused(try(), QL_FORMAT, "weight_map \"a\" is an integer");
    make_text(dir, INDEX, "{\"weight_map\":{}}");
    assert_refused(try(), QL_FORMAT, "\"weight_map\" is empty");
    make_text(dir, INDEX, "{\"weight_map\":[]}");
    assert_refused(try(), QL_FORMAT, "\"weight_map\" is an array");
    make_text(dir, INDEX, "{}");
    assert_refused(try(), QL_FORMAT, "\"weight_map\" is missing");
    make_text(dir, INDEX, "{\"weight_map\":{\"a\":\"x\",\"a\":\"y\"}}");
    assert_refused(try(), QL_FORMAT, "duplicate");
}

static void trap02_index_must_agree_with_the_shards(void **state) {
    (void)state;
    make_text(dir, "config.json", "{}");
    make_letters("1.safetensors", "ab");
    make_letters("2.safetensors", "cd");
    make_text(dir, INDEX, "{\"weight_map\":{\"a\":\"1.safetensors\",\"c\":\"3.safetensors\"}}");
    assert_refused(try(), QL_MISSING, "names 3.safetensors, which is not there: an incomplete download");
    make_text(dir, INDEX, "{\"weight_map\":{\"a\":\"1.safetensors\",\"e\":\"2.safetensors\"}}");
    assert_refused(try(), QL_FORMAT, "\"e\" in 2.safetensors, which does not hold it");
    make_text(dir, INDEX, "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"2.safetensors\"}}");
    assert_refused(try(), QL_FORMAT, "does not hold it; it is in 1.safetensors");
    make_letters("2.safetensors", "bcd");
    assert_refused(try(), QL_FORMAT, "\"b\" is in 1.safetensors and in 2.safetensors");
}

/* Shards of an earlier save hold tensors that the index does not name: left out, not mixed in. */
static void trap01_tensors_beside_the_index_are_left_out(void **state) {
    (void)state;
    make_text(dir, "config.json", "{}");
    make_letters("1.safetensors", "abx");
    make_letters("2.safetensors", "c");
    make_letters("stale.safetensors", "a");
    make_text(dir, INDEX, "{\"weight_map\":{\"a\":\"1.safetensors\",\"b\":\"1.safetensors\",\"c\":\"2.safetensors\"}}");
    checkpoint *ck;
    assert_ok(checkpoint_open(dir, &ck));
    assert_int_equal(checkpoint_count(ck), 3);
    assert_null(checkpoint_find(ck, "x"));
    assert_int_equal(checkpoint_file_count(ck), 2);
    checkpoint_close(ck);
}

static void odd_files_are_refused_and_never_waited_for(void **state) {
    (void)state;
    make_text(dir, "config.json", "{}");
    make_text(dir, INDEX, "{\"weight_map\":{\"a\":\"1.safetensors\"}}");
    assert_int_equal(mkfifo(in_dir("1.safetensors"), 0600), 0);
    assert_refused(try(), QL_FORMAT, "1.safetensors: not a regular file");
    unlink(in_dir("1.safetensors"));
    assert_int_equal(mkdir(in_dir("1.safetensors"), 0700), 0);
    assert_refused(try(), QL_FORMAT, "1.safetensors: not a regular file");
    rmdir(in_dir("1.safetensors"));
    assert_int_equal(symlink("/etc/passwd", in_dir("1.safetensors")), 0);
    assert_refused(try(), QL_FORMAT, "outside of");
    unlink(in_dir("1.safetensors"));
    assert_int_equal(symlink("gone", in_dir("1.safetensors")), 0);
    assert_refused(try(), QL_MISSING, "1.safetensors");
    unlink(in_dir("1.safetensors"));
    make_letters("real", "a");
    assert_int_equal(symlink("real", in_dir("1.safetensors")), 0); /* within the directory */
    assert_ok(try());
}

/* models--x/snapshots/REV/file -> ../../blobs/HASH, with a second model beside it that must stay out of reach. */
static void hugging_face_cache_links_are_followed(void **state) {
    (void)state;
    char snapshot[MAKE_PATH + 64];
    snprintf(snapshot, sizeof snapshot, "%s/models--x/snapshots/0123", dir);
    assert_ok(ql_dir_make(snapshot));
    assert_ok(ql_dir_make(in_dir("models--x/blobs")));
    assert_ok(ql_dir_make(in_dir("models--y/blobs")));
    make_text(dir, "models--x/blobs/c0", "{}");
    make_letters("models--x/blobs/5af3", "ab");
    make_letters("models--y/blobs/5af3", "ab");
    assert_int_equal(symlink("../../blobs/c0", in_dir("models--x/snapshots/0123/config.json")), 0);
    assert_int_equal(symlink("../../blobs/5af3", in_dir("models--x/snapshots/0123/model.safetensors")), 0);
    checkpoint *ck;
    assert_ok(checkpoint_open(snapshot, &ck));
    assert_int_equal(checkpoint_count(ck), 2);
    checkpoint_close(ck);
    assert_int_equal(symlink(snapshot, in_dir("short")), 0); /* the directory itself through a link */
    assert_ok(checkpoint_open(in_dir("short"), &ck));
    checkpoint_close(ck);
    unlink(in_dir("models--x/snapshots/0123/model.safetensors"));
    assert_int_equal(symlink("../../../models--y/blobs/5af3", in_dir("models--x/snapshots/0123/model.safetensors")), 0);
    assert_refused(checkpoint_open(snapshot, &ck), QL_FORMAT, "outside of");
}

static void shard_of_wrong_length_says_by_how_much(void **state) {
    (void)state;
    make_shards(2);
    const char *name = "model-00002-of-00002.safetensors";
    struct stat info;
    assert_int_equal(stat(in_dir(name), &info), 0);
    assert_int_equal(truncate(in_dir(name), info.st_size - 1), 0);
    assert_refused(try(), QL_FORMAT,
                   "00002-of-00002.safetensors: the file is 1 bytes shorter than its header says; download");
    assert_int_equal(truncate(in_dir(name), info.st_size - 20000), 0);
    assert_refused(try(), QL_FORMAT, "20000 bytes shorter");
    make_shards(2);
    assert_int_equal(truncate(in_dir(name), info.st_size + 1), 0);
    assert_refused(try(), QL_FORMAT, "1 bytes longer");
}

static void index_of_a_million_entries(void **state) {
    (void)state;
    make_text(dir, "config.json", "{}");
    make_letters("1.safetensors", "a");
    FILE *file = fopen(in_dir(INDEX), "wb");
    assert_non_null(file);
    fprintf(file, "{\"weight_map\":{\"a\":\"1.safetensors\"");
    for (int i = 0; i < 1000000; i++) fprintf(file, ",\"t%d\":\"1.safetensors\"", i);
    fprintf(file, "}}");
    assert_int_equal(fclose(file), 0);
    assert_refused(try(), QL_FORMAT, "\"t0\" in 1.safetensors, which does not hold it");
}

#ifdef QL_FAULTS
static void every_fault_while_opening_is_reported(void **state) {
    (void)state;
    static const char *const sites[] = {"malloc", "open", "read"};
    make_shards(2);
    for (size_t s = 0; s < 6; s++) {
        ql_status status = QL_IO;
        for (long n = 1; status != QL_OK; n++) {
            char setting[64];
            snprintf(setting, sizeof setting, "%s:%ld:%s", sites[s / 2], n, s % 2 ? "always" : "once");
            ql_fault_set(setting);
            status = try();
            ql_fault_set(NULL);
            if (status != QL_OK && status != QL_NOMEM && status != QL_IO)
                fail_msg("%s: %s: %s", setting, ql_status_name(status), ql_last_error());
            assert_true(n < 5000);
        }
    }
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(shards_read_like_one_file, setup, teardown),
        cmocka_unit_test_setup_teardown(a_single_file_may_have_any_name, setup, teardown),
        cmocka_unit_test_setup_teardown(missing_parts_are_named, setup, teardown),
        cmocka_unit_test_setup_teardown(bad_configs_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(index_names_must_be_plain, setup, teardown),
        cmocka_unit_test_setup_teardown(trap02_index_must_agree_with_the_shards, setup, teardown),
        cmocka_unit_test_setup_teardown(trap01_tensors_beside_the_index_are_left_out, setup, teardown),
        cmocka_unit_test_setup_teardown(odd_files_are_refused_and_never_waited_for, setup, teardown),
        cmocka_unit_test_setup_teardown(hugging_face_cache_links_are_followed, setup, teardown),
        cmocka_unit_test_setup_teardown(shard_of_wrong_length_says_by_how_much, setup, teardown),
        cmocka_unit_test_setup_teardown(index_of_a_million_entries, setup, teardown),
#ifdef QL_FAULTS
        cmocka_unit_test_setup_teardown(every_fault_while_opening_is_reported, setup, teardown),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
