/* inspect: files made by hand, the numbers of --stats, and the place of a NaN. */
#include "tests/test.h"

#include <math.h>

#include "calib/inspect.h"
#include "formats/gguf.h"
#include "host/file.h"

static char dir[] = "/tmp/inspect_XXXXXX", path[64];
static int make_dir(void **state) {
    (void)state;
    bool made = mkdtemp(dir) != NULL;
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    return !made;
}
static int remove_dir(void **state) {
    (void)state;
    return ql_dir_remove(dir) != QL_OK;
}

/* "a" F32 [2][3] and "b" BF16 [2]: 24 + 4 bytes. */
static void write_file(const float a[6], const uint16_t b[2]) {
    static const char header[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]},"
                                 "\"b\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[24,28]}}";
    char bytes[8 + sizeof header - 1 + 28];
    uint64_t size = sizeof header - 1;
    memcpy(bytes, &size, 8);
    memcpy(bytes + 8, header, sizeof header - 1);
    memcpy(bytes + 8 + size, a, 24);
    memcpy(bytes + 8 + size + 24, b, 4);
    assert_ok(ql_file_save(path, bytes, sizeof bytes));
}

static const json_t *tensor(const json_t *document, size_t i) {
    return json_array_get(json_object_get(document, "tensors"), i);
}
static double number(const json_t *object, const char *key) { return json_number_value(json_object_get(object, key)); }

static void tensors_and_their_statistics(void **state) {
    (void)state;
    const float a[6] = {1, 2, 3, 4, 5, -3};
    const uint16_t b[2] = {0x3f80, 0xbf80}; /* 1, -1 */
    inspect_request request = {.path = path, .stats = true, .check_finite = true};
    json_t *document;
    write_file(a, b);
    assert_ok(inspect_path(&request, &document));
    assert_string_equal(json_string_value(json_object_get(document, "kind")), "safetensors");
    const json_t *first = tensor(document, 0), *second = tensor(document, 1);
    assert_string_equal(json_string_value(json_object_get(first, "dtype")), "F32");
    assert_true(number(first, "bytes") == 24 && number(first, "min") == -3 && number(first, "max") == 5);
    assert_true(number(first, "mean") == 2 && number(first, "not_finite") == 0);
    assert_true(fabs(number(first, "std") - sqrt(40.0 / 6)) < 1e-12); /* squares 1 0 1 4 9 25 */
    assert_true(number(second, "min") == -1 && number(second, "std") == 1);
    const json_t *f32 = json_object_get(json_object_get(document, "dtypes"), "F32");
    assert_true(number(f32, "tensors") == 1 && number(f32, "elements") == 6 && number(f32, "bytes") == 24);
    json_decref(document);
}

static void nan_is_named_with_its_place(void **state) {
    (void)state;
    float a[6] = {1, 2, 3, 4, 5, 6};
    uint16_t b[2] = {0x3f80, 0x7f80}; /* 1, infinity */
    inspect_request request = {.path = path, .check_finite = true};
    json_t *document;
    write_file(a, b);
    assert_refused(inspect_path(&request, &document), QL_FORMAT, "\"b\" is not finite at [1] (element 1)");
    a[5] = NAN;
    write_file(a, b);
    assert_refused(inspect_path(&request, &document), QL_FORMAT, "\"a\" is not finite at [1, 2] (element 5)");
    assert_null(document);
    request = (inspect_request){.path = path, .stats = true};
    assert_ok(inspect_path(&request, &document));
    assert_true(number(tensor(document, 0), "not_finite") == 1 && number(tensor(document, 0), "mean") == 3);
    json_decref(document);
    request = (inspect_request){.path = path};
    assert_ok(inspect_path(&request, &document)); /* values are not read unless somebody asks */
    assert_null(json_object_get(tensor(document, 0), "min"));
    json_decref(document);
}

static void what_is_nothing(void **state) {
    (void)state;
    json_t *document;
    char missing[80];
    snprintf(missing, sizeof missing, "%s/missing", dir);
    inspect_request request = {.path = missing};
    assert_refused(inspect_path(&request, &document), QL_MISSING, missing);
    request.path = "/dev/null";
    assert_refused(inspect_path(&request, &document), QL_FORMAT, "not a regular file");
    assert_ok(ql_file_save(path, "\x89HDF\r\n\x1a\n", 8));
    request.path = path;
    assert_refused(inspect_path(&request, &document), QL_FORMAT, path);
    assert_ok(ql_file_save(path, "x", 1));
    assert_refused(inspect_path(&request, &document), QL_FORMAT, path);
}

/* Keys of every sort, and a shape the other way round than the file has it. */
static void gguf_keys_and_tensors(void **state) {
    (void)state;
    const char *words[] = {"a", "b", "c"};
    const uint8_t blocks[5 * 36] = {0};
    inspect_request request = {.path = path};
    json_t *document;
    gguf_meta meta = {0};
    gguf_writer *writer;
    gguf_tensor t = {.name = "w", .type = gguf_block(QL_Q4_0), .rank = 2, .ne = {64, 5, 1, 1}};
    assert_ok(gguf_put_string(&meta, "text", "value"));
    assert_ok(gguf_put_array(&meta, "words", GGUF_STRING, words, 3));
    assert_ok(gguf_put_f32(&meta, "infinite", INFINITY)); /* JSON has no word for it */
    assert_ok(gguf_put_bool(&meta, "truth", true));
    assert_ok(gguf_writer_open(path, &meta, &t, 1, &writer));
    assert_ok(gguf_writer_append(writer, blocks, sizeof blocks));
    assert_ok(gguf_writer_commit(writer, NULL));
    gguf_meta_free(&meta);
    assert_ok(inspect_path(&request, &document));
    const json_t *keys = json_object_get(document, "metadata"), *first = tensor(document, 0);
    assert_string_equal(json_string_value(json_object_get(document, "kind")), "gguf");
    assert_string_equal(json_string_value(json_object_get(keys, "text")), "value");
    assert_true(number(json_object_get(keys, "words"), "count") == 3);
    assert_true(json_is_null(json_object_get(keys, "infinite")) && json_is_true(json_object_get(keys, "truth")));
    assert_string_equal(json_string_value(json_object_get(first, "dtype")), "Q4_0");
    const json_t *shape = json_object_get(first, "shape");
    assert_true(json_integer_value(json_array_get(shape, 0)) == 5 &&
                json_integer_value(json_array_get(shape, 1)) == 64);
    assert_true(number(first, "bytes") == 180);
    assert_true(number(json_object_get(json_object_get(document, "dtypes"), "Q4_0"), "elements") == 320);
    json_decref(document);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tensors_and_their_statistics),
        cmocka_unit_test(nan_is_named_with_its_place),
        cmocka_unit_test(what_is_nothing),
        cmocka_unit_test(gguf_keys_and_tensors),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
