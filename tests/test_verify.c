/* verify finds what was done to a good directory, and finds nothing in one. */
#include "tests/test.h"

#include <sys/stat.h>
#include <unistd.h>

#include "calib/output.h"
#include "calib/verify.h"
#include "formats/json.h"
#include "host/fault.h"
#include "host/mat.h"
#include "tests/tiny_model.h"

static char root[64], source[80], target[80];
static ql_arena *arena;
static checkpoint *ck;
static model_config config;
static verify_result result;

static const layout_scheme asymmetric = {
    .bits = 4, .group = 32, .static_groups = true, .true_sequential = true, .version = 1, .damp = 0.05};
static const layout_scheme symmetric = {
    .bits = 3, .group = 32, .symmetric = true, .static_groups = true, .version = 1, .damp = 0.05};

static void produce(const layout_scheme *scheme, const layout_scheme *grid) {
    output *out;
    const output_texts texts = {0};
    const output_request request = {.scheme = scheme, .shard_size = 30000};
    assert_ok(output_open(target, ck, &config, &request, &out));
    for (int64_t layer = 0; layer < config.layers; layer++) {
        qmodule modules[LINEARS];
        tiny_quantize(ck, &config, layer, grid, arena, modules);
        assert_ok(output_layer(out, layer, modules, NULL));
    }
    assert_ok(output_finish(out, &texts));
    output_close(out);
}

static int setup(void **state) {
    (void)state;
    snprintf(root, sizeof root, "/tmp/qalib-verify-XXXXXX");
    if (!mkdtemp(root)) return -1;
    snprintf(source, sizeof source, "%s/tiny", root);
    snprintf(target, sizeof target, "%s/out", root);
    if (ql_arena_open(NULL, &arena) != QL_OK) return -1;
    tiny_write(source, &(tiny_model){.dtype = QL_BF16});
    assert_ok(checkpoint_open(source, &ck));
    assert_ok(model_config_parse(checkpoint_config(ck), source, arena, &config));
    return 0;
}

static int teardown(void **state) {
    (void)state;
    checkpoint_close(ck);
    ql_arena_close(arena);
    return ql_dir_remove(root) == QL_OK ? 0 : -1;
}

static void assert_found(const char *base, const char *words) {
    assert_ok(verify_directory(target, base, arena, &result));
    assert_true(result.findings > 0);
    for (int64_t i = 0; i < result.findings && i < VERIFY_SHOWN; i++)
        if (strstr(result.finding[i], words)) return;
    fail_msg("\"%s\" was not found; the first finding is \"%s\"", words, result.finding[0]);
}

static void assert_clean(const char *base) {
    assert_ok(verify_directory(target, base, arena, &result));
    if (result.findings > 0) fail_msg("%s", result.finding[0]);
}

static void path_of(char path[256], const char *name) { snprintf(path, 256, "%s/%s", target, name); }

static void remove_file(const char *name) {
    char path[256];
    path_of(path, name);
    assert_int_equal(unlink(path), 0);
}

static void replace(const char *name, const char *old, const char *new) {
    size_t size;
    char *text = tiny_read(target, name, &size, arena), *at = strstr(text, old), *edited;
    assert_non_null(at);
    assert_ok(ql_arena_format(arena, &edited, "%.*s%s%s", (int)(at - text), text, new, at + strlen(old)));
    tiny_save(target, name, edited);
}

/* Changes tensor bytes in place: the checksums have to go, or they would find it first. */
static void patch(const char *tensor, uint64_t offset, const void *bytes, size_t size) {
    checkpoint *out;
    assert_ok(checkpoint_open(target, &out));
    const st_tensor *found = checkpoint_find(out, tensor);
    assert_non_null(found);
    for (int64_t f = 0; f < checkpoint_file_count(out); f++) {
        const st_file *file = checkpoint_file(out, f);
        for (int64_t t = 0; t < file->count; t++)
            if (strcmp(file->tensors[t].name, tensor) == 0) {
                FILE *stream = fopen(file->path, "r+b");
                assert_int_equal(fseek(stream, (long)(file->tensors[t].begin + offset), SEEK_SET), 0);
                assert_int_equal(fwrite(bytes, 1, size, stream), size);
                assert_int_equal(fclose(stream), 0);
            }
    }
    checkpoint_close(out);
}

/* ---- good directories --------------------------------------------------------------------------------------------------------------- */

static void good_directories_have_no_findings(void **state) {
    (void)state;
    const layout_scheme *const schemes[] = {&asymmetric, &symmetric, NULL};
    for (int i = 0; i < 3; i++) {
        produce(schemes[i], schemes[i] ? schemes[i] : &symmetric);
        assert_clean(source);
        assert_true(result.hashed);
        assert_int_equal(result.modules, i < 2 ? 14 : 0);
        assert_int_equal(result.quantized, i < 2);
        assert_int_equal(result.extras, 0);
        assert_int_equal(result.row_count, 2 + 14); /* embedding, head, Linears */
        assert_ok(ql_dir_remove(target));
    }
}

static void source_itself_is_a_good_dense_directory(void **state) {
    (void)state;
    assert_ok(verify_directory(source, source, arena, &result));
    if (result.findings > 0) fail_msg("%s", result.finding[0]);
    assert_false(result.hashed);
    for (int64_t i = 0; i < result.row_count; i++) assert_true(result.rows[i].error == 0);
}

static void missing_directory_is_a_failure(void **state) {
    (void)state;
    assert_refused(verify_directory(target, NULL, arena, &result), QL_MISSING, "out");
}

/* What verify could not read or hold is an error of its own, never a clean bill. */
static void faults_are_failures_not_findings(void **state) {
    (void)state;
#ifndef QL_FAULTS
    print_message("skipped: built without fault injection\n");
    skip();
#else
    static const char *const sites[] = {"open", "read", "malloc"};
    produce(&asymmetric, &asymmetric);
    for (size_t s = 0; s < sizeof sites / sizeof *sites; s++) {
        bool reached = true;
        for (long n = 1; reached; n += 1 + n / 4) {
            char setting[64];
            ql_arena *fresh;
            snprintf(setting, sizeof setting, "%s:%ld:once", sites[s], n);
            assert_ok(ql_arena_open(NULL, &fresh));
            ql_fault_set(setting);
            ql_status status = verify_directory(target, source, fresh, &result);
            reached = ql_fault_passages() >= n;
            ql_fault_set(NULL);
            if ((status == QL_OK) == reached) fail_msg("%s: %s", setting, ql_status_name(status));
            if (status == QL_OK) assert_int_equal(result.findings, 0);
            ql_arena_close(fresh);
        }
    }
#endif
}

/* ---- hashes ---------------------------------------------------------------------------------------------------------------------------- */

static void one_flipped_bit_in_any_file_is_found(void **state) {
    (void)state;
    produce(&asymmetric, &asymmetric);
    size_t size;
    char *sums = tiny_read(target, "SHA256SUMS", &size, arena);
    int files = 0;
    for (char *line = sums; *line; line = strchr(line, '\n') + 1, files++) {
        char name[128], path[256];
        assert_int_equal(sscanf(line + 66, "%127[^\n]", name), 1);
        path_of(path, name);
        struct stat info;
        assert_int_equal(stat(path, &info), 0);
        for (int where = 0; where < 3; where++) {
            FILE *stream = fopen(path, "r+b");
            long at = where * (info.st_size - 1) / 2;
            fseek(stream, at, SEEK_SET);
            int byte = fgetc(stream);
            fseek(stream, at, SEEK_SET);
            fputc(byte ^ 1 << (where + 1), stream);
            fflush(stream);
            assert_ok(verify_directory(target, NULL, arena, &result));
            if (result.findings == 0) fail_msg("%s: byte %ld", name, at);
            fseek(stream, at, SEEK_SET);
            fputc(byte, stream);
            fclose(stream);
        }
    }
    assert_true(files >= 10);
    assert_clean(NULL);
}

static void damaged_sums_are_found(void **state) {
    (void)state;
    produce(&asymmetric, &asymmetric);
    replace("SHA256SUMS", "  config.json", " config.json");
    assert_found(NULL, "is no checksum");
    replace("SHA256SUMS", " config.json", "  ../config.json");
    assert_found(NULL, "is no checksum");
}

static void missing_and_extra_files(void **state) {
    (void)state;
    produce(&asymmetric, &asymmetric);
    tiny_save(target, "thoughts.txt", "mine");
    assert_clean(NULL);
    assert_int_equal(result.extras, 1);
    assert_string_equal(result.extra[0], "thoughts.txt");
    remove_file("tokenizer.json");
    assert_found(NULL, "tokenizer.json: is missing");
}

static void incomplete_directory_is_found(void **state) {
    (void)state;
    produce(&asymmetric, &asymmetric);
    remove_file("config.json");
    tiny_save(target, ".qalib-incomplete", "job");
    assert_found(NULL, "did not finish");
}

/* ---- structure -------------------------------------------------------------------------------------------------------------------------- */

static void truncated_shard_is_found(void **state) {
    (void)state;
    char path[256];
    struct stat info;
    produce(&asymmetric, &asymmetric);
    remove_file("SHA256SUMS");
    path_of(path, "model-00002-of-00003.safetensors");
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(truncate(path, info.st_size - 1), 0);
    assert_found(NULL, "model-00002-of-00003.safetensors");
    assert_int_equal(unlink(path), 0);
    assert_found(NULL, "model-00002-of-00003.safetensors");
}

static void trap01_stale_shard_is_found(void **state) {
    (void)state;
    produce(&asymmetric, &asymmetric);
    char path[256], *data;
    size_t size;
    data = tiny_read(target, "model-00003-of-00003.safetensors", &size, arena);
    path_of(path, "model-00009-of-00009.safetensors");
    assert_ok(ql_file_save(path, data, size));
    assert_found(NULL, "a stray file");
    remove_file("SHA256SUMS");
    assert_found(NULL, "the index does not name it");
}

static void trap02_wrong_total_size_is_found(void **state) {
    (void)state;
    produce(&asymmetric, &asymmetric);
    remove_file("SHA256SUMS");
    replace("model.safetensors.index.json", "\"total_size\": ", "\"total_size\": 1");
    assert_found(NULL, "total_size");
}

static void trap13_config_against_tensors_is_found(void **state) {
    (void)state;
    produce(&asymmetric, &asymmetric);
    remove_file("SHA256SUMS");
    remove_file("quantize_config.json");
    replace("config.json", "\"bits\": 4", "\"bits\": 8");
    assert_found(NULL, "has not the shape");
    replace("config.json", "\"bits\": 8", "\"bits\": 4");
    assert_clean(NULL);
    replace("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1");
    assert_found(NULL, "is not part of this model");
    replace("config.json", "\"num_hidden_layers\": 1", "\"num_hidden_layers\": 3");
    assert_found(NULL, "is missing");
}

/* ---- numbers ----------------------------------------------------------------------------------------------------------------------------- */

static void trap07_wrong_version_is_found(void **state) {
    (void)state;
    produce(&symmetric, &symmetric);
    remove_file("SHA256SUMS");
    remove_file("quantize_config.json");
    replace("config.json", "\"checkpoint_format\": \"gptq\"", "\"checkpoint_format\": \"gptq_v2\"");
    assert_found(NULL, "labelled GPTQ v2, but the zero points are those of v1");
}

/* An asymmetric grid does not give the label away, the base does: every weight is one step off. */
static void trap07_wrong_version_of_an_asymmetric_grid_is_found_against_the_base(void **state) {
    (void)state;
    produce(&asymmetric, &asymmetric);
    remove_file("SHA256SUMS");
    remove_file("quantize_config.json");
    replace("config.json", "\"checkpoint_format\": \"gptq\"", "\"checkpoint_format\": \"gptq_v2\"");
    assert_clean(NULL);
    assert_found(source, "differs from the base");
    assert_int_equal(result.findings, 14);
}

static void trap12_bad_scales_are_found(void **state) {
    (void)state;
    static const uint16_t bad[] = {0, 0x7c00, 0x7e00, 0xbc00}; /* 0, inf, NaN, -1 */
    produce(&asymmetric, &asymmetric);
    remove_file("SHA256SUMS");
    for (int i = 0; i < 4; i++) {
        patch("model.layers.1.mlp.up_proj.scales", 20, &bad[i], 2);
        assert_found(NULL, "model.layers.1.mlp.up_proj.scales: output 10, group 0");
        assert_int_equal(result.findings, 1);
    }
}

static void weights_beyond_f16_are_found(void **state) {
    (void)state;
    static const uint16_t large = 0x7bff;
    produce(&asymmetric, &asymmetric);
    remove_file("SHA256SUMS");
    patch("model.layers.1.mlp.up_proj.scales", 20, &large, 2);
    assert_found(NULL, "beyond F16");
}

static void trap08_zero_point_out_of_range_is_found(void **state) {
    (void)state;
    static const unsigned char wrapped = 0xff;
    produce(&asymmetric, &asymmetric);
    remove_file("SHA256SUMS");
    patch("model.layers.0.self_attn.k_proj.qzeros", 3, &wrapped, 1);
    assert_found(NULL, "k_proj.qzeros: output 6, group 0");
}

static void trap10_group_indices_of_fused_modules_differ(void **state) {
    (void)state;
    static const int32_t swapped[2] = {1, 0};
    produce(&asymmetric, &asymmetric);
    remove_file("SHA256SUMS");
    patch("model.layers.0.self_attn.v_proj.g_idx", 31 * 4, swapped, 8); /* inputs 31 and 32 change groups */
    assert_found(NULL, "its g_idx differs from that of model.layers.0.self_attn.q_proj");
    assert_int_equal(result.findings, 1);
}

static void symmetric_label_with_other_zero_points_is_found(void **state) {
    (void)state;
    produce(&asymmetric, &asymmetric);
    remove_file("SHA256SUMS");
    remove_file("quantize_config.json");
    replace("config.json", "\"sym\": false", "\"sym\": true");
    assert_found(NULL, "says symmetric");
}

static void nan_in_an_unquantized_tensor_is_found(void **state) {
    (void)state;
    static const uint16_t nan = 0x7e01;
    produce(&asymmetric, &asymmetric);
    remove_file("SHA256SUMS");
    patch("lm_head.weight", 10, &nan, 2);
    assert_found(NULL, "\"lm_head.weight\" has NaN at element 5");
}

static void exchanged_weights_are_found_against_the_base(void **state) {
    (void)state;
    static const uint32_t words[64] = {0};
    produce(&asymmetric, &asymmetric);
    remove_file("SHA256SUMS");
    patch("model.layers.1.self_attn.o_proj.qweight", 0, words, sizeof words);
    assert_clean(NULL);
    assert_found(source, "model.layers.1.self_attn.o_proj: differs from the base");
    assert_int_equal(result.findings, 1);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(good_directories_have_no_findings),
        TEST(source_itself_is_a_good_dense_directory),
        TEST(missing_directory_is_a_failure),
        TEST(faults_are_failures_not_findings),
        TEST(one_flipped_bit_in_any_file_is_found),
        TEST(damaged_sums_are_found),
        TEST(missing_and_extra_files),
        TEST(incomplete_directory_is_found),
        TEST(truncated_shard_is_found),
        TEST(trap01_stale_shard_is_found),
        TEST(trap02_wrong_total_size_is_found),
        TEST(trap13_config_against_tensors_is_found),
        TEST(trap07_wrong_version_is_found),
        TEST(trap07_wrong_version_of_an_asymmetric_grid_is_found_against_the_base),
        TEST(trap12_bad_scales_are_found),
        TEST(weights_beyond_f16_are_found),
        TEST(trap08_zero_point_out_of_range_is_found),
        TEST(trap10_group_indices_of_fused_modules_differ),
        TEST(symmetric_label_with_other_zero_points_is_found),
        TEST(nan_in_an_unquantized_tensor_is_found),
        TEST(exchanged_weights_are_found_against_the_base),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
