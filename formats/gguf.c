/* The reading half of formats/gguf.h. */
#include "formats/gguf.h"

#include <stdlib.h>
#include <string.h>

static const size_t FIRST_LOAD = 1u << 20, MOST_HEADER = 1u << 30;

#define NONE QL_DTYPE_COUNT, QL_BLOCK_TYPE_COUNT
static const gguf_type types[] = {
    {0, "F32", 1, 4, QL_F32, QL_BLOCK_TYPE_COUNT},
    {1, "F16", 1, 2, QL_F16, QL_BLOCK_TYPE_COUNT},
    {30, "BF16", 1, 2, QL_BF16, QL_BLOCK_TYPE_COUNT},
    {28, "F64", 1, 8, QL_F64, QL_BLOCK_TYPE_COUNT},
    {24, "I8", 1, 1, QL_I8, QL_BLOCK_TYPE_COUNT},
    {25, "I16", 1, 2, QL_I16, QL_BLOCK_TYPE_COUNT},
    {26, "I32", 1, 4, QL_I32, QL_BLOCK_TYPE_COUNT},
    {27, "I64", 1, 8, QL_I64, QL_BLOCK_TYPE_COUNT},
#define BLOCK(id, text, number, weights, bytes) {number, text, weights, bytes, QL_DTYPE_COUNT, id},
    QL_BLOCK_TYPES(BLOCK)
#undef BLOCK
        {9, "Q8_1", 32, 36, NONE},
    {15, "Q8_K", 256, 292, NONE},
    {16, "IQ2_XXS", 256, 66, NONE},
    {17, "IQ2_XS", 256, 74, NONE},
    {18, "IQ3_XXS", 256, 98, NONE},
    {19, "IQ1_S", 256, 50, NONE},
    {21, "IQ3_S", 256, 110, NONE},
    {22, "IQ2_S", 256, 82, NONE},
    {23, "IQ4_XS", 256, 136, NONE},
    {29, "IQ1_M", 256, 56, NONE},
    {34, "TQ1_0", 256, 54, NONE},
    {35, "TQ2_0", 256, 66, NONE},
    {39, "MXFP4", 32, 17, NONE},
};
enum { TYPES = sizeof types / sizeof types[0] };

const gguf_type *gguf_type_of(uint32_t number) {
    for (int i = 0; i < TYPES; i++)
        if ((uint32_t)types[i].number == number) return &types[i];
    return NULL;
}

const gguf_type *gguf_dtype(ql_dtype dtype) {
    for (int i = 0; i < TYPES; i++)
        if (types[i].dtype == dtype) return &types[i];
    return NULL;
}

const gguf_type *gguf_block(ql_block_type block) {
    for (int i = 0; i < TYPES; i++)
        if (types[i].block == block) return &types[i];
    return NULL;
}

static const struct {
    const char *name;
    size_t size;
} kinds[GGUF_KINDS] = {{"u8", 1},   {"i8", 1},     {"u16", 2},   {"i16", 2}, {"u32", 4}, {"i32", 4}, {"f32", 4},
                       {"bool", 1}, {"string", 0}, {"array", 0}, {"u64", 8}, {"i64", 8}, {"f64", 8}};

const char *gguf_kind_name(gguf_kind kind) { return (unsigned)kind < GGUF_KINDS ? kinds[kind].name : "?"; }

/* ---- a walk through the header ------------------------------------------------------------------------------------------ */

/* `size` bytes of the file are loaded.  A walk that needs more sets `short_of`, and is repeated with twice as many. */
typedef struct cursor {
    const char *path;
    const uint8_t *bytes;
    uint64_t size, at, file_size;
    bool short_of;
    ql_arena *arena;
} cursor;

/* Unsigned, `size` bytes. */
static uint64_t number_at(const uint8_t *bytes, size_t size) {
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++) value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

/* The next count * size bytes. */
static ql_status take(cursor *c, uint64_t count, uint64_t size, const char *what, const uint8_t **bytes) {
    uint64_t total;
    *bytes = NULL;
    if (!ql_mul_size(count, size, &total) || total > c->file_size - c->at)
        return ql_fail(QL_FORMAT, "%s at byte %llu: %llu times %llu bytes, the file has %llu left", what,
                       (unsigned long long)c->at, (unsigned long long)count, (unsigned long long)size,
                       (unsigned long long)(c->file_size - c->at));
    if (total > c->size - c->at) {
        c->short_of = true;
        return ql_fail(QL_FORMAT, "the header is longer than %zu bytes", MOST_HEADER);
    }
    *bytes = c->bytes + c->at;
    c->at += total;
    return QL_OK;
}

static ql_status take_number(cursor *c, size_t size, const char *what, uint64_t *value) {
    const uint8_t *bytes;
    *value = 0;
    QL_TRY(take(c, 1, size, what, &bytes));
    *value = number_at(bytes, size);
    return QL_OK;
}

/* A string as C has them: not empty, and without a NUL, which would hide its rest. */
static ql_status take_name(cursor *c, const char *what, uint64_t most, const char **name) {
    uint64_t length;
    const uint8_t *bytes;
    char *copy;
    QL_TRY(take_number(c, 8, what, &length));
    QL_TRY(take(c, length, 1, what, &bytes));
    if (length == 0) return ql_fail(QL_FORMAT, "%s is empty", what);
    if (length > most)
        return ql_fail(QL_FORMAT, "%s has %llu bytes, at most %llu are allowed", what, (unsigned long long)length,
                       (unsigned long long)most);
    if (memchr(bytes, 0, length)) return ql_fail(QL_FORMAT, "%s contains a NUL", what);
    QL_TRY(ql_take(c->arena, length + 1, 1, &copy));
    memcpy(copy, bytes, length);
    copy[length] = 0;
    *name = copy;
    return QL_OK;
}

static ql_status take_kind(cursor *c, gguf_kind *kind) {
    uint64_t value;
    QL_TRY(take_number(c, 4, "type", &value));
    *kind = (gguf_kind)value;
    return value < GGUF_KINDS ? QL_OK : ql_fail(QL_FORMAT, "type %llu is none", (unsigned long long)value);
}

static ql_status take_string(cursor *c, const uint8_t **bytes, uint64_t *length) {
    QL_TRY(take_number(c, 8, "string", length));
    return take(c, *length, 1, "string", bytes);
}

static ql_status take_array(cursor *c, gguf_key *key) {
    const uint8_t *bytes;
    uint64_t length;
    QL_TRY(take_kind(c, &key->element));
    QL_TRY(take_number(c, 8, "array", &key->count));
    if (key->element == GGUF_ARRAY) return ql_fail(QL_FORMAT, "an array of arrays");
    if (key->element != GGUF_STRING) return take(c, key->count, kinds[key->element].size, "array", &key->value);
    if (key->count > (c->file_size - c->at) / 8) /* a length each, at least */
        return ql_fail(QL_FORMAT, "an array of %llu strings, the file has %llu bytes left",
                       (unsigned long long)key->count, (unsigned long long)(c->file_size - c->at));
    key->value = c->bytes + c->at;
    for (uint64_t i = 0; i < key->count; i++) QL_TRY(take_string(c, &bytes, &length));
    return QL_OK;
}

static ql_status take_value(cursor *c, gguf_key *key) {
    QL_TRY(take_kind(c, &key->kind));
    if (key->kind == GGUF_ARRAY) return take_array(c, key);
    if (key->kind == GGUF_STRING) return take_string(c, &key->value, &key->count);
    QL_TRY(take(c, 1, kinds[key->kind].size, "value", &key->value));
    if (key->kind == GGUF_BOOL && *key->value > 1) return ql_fail(QL_FORMAT, "a bool is %d", *key->value);
    return QL_OK;
}

static ql_status take_tensor(cursor *c, gguf_tensor *tensor) {
    uint64_t rank, type, elements = 1;
    QL_TRY(take_number(c, 4, "n_dims", &rank));
    if (rank < 1 || rank > GGUF_MAX_DIMS)
        return ql_fail(QL_FORMAT, "%llu dimensions, expected 1 .. %d", (unsigned long long)rank, GGUF_MAX_DIMS);
    tensor->rank = (int)rank;
    for (int i = 0; i < GGUF_MAX_DIMS; i++) {
        uint64_t ne = 1;
        if (i < tensor->rank) QL_TRY(take_number(c, 8, "ne", &ne));
        if (ne > INT64_MAX) return ql_fail(QL_FORMAT, "dimension %d is %lld", i, (long long)ne);
        if (!ql_mul_size(elements, ne, &elements) || elements > INT64_MAX)
            return ql_fail(QL_FORMAT, "its shape has 2^63 elements or more");
        tensor->ne[i] = (int64_t)ne;
    }
    QL_TRY(take_number(c, 4, "type", &type));
    if (!(tensor->type = gguf_type_of((uint32_t)type)))
        return ql_fail(QL_FORMAT, "type %llu is none that ggml has", (unsigned long long)type);
    if (tensor->ne[0] % tensor->type->count)
        return ql_fail(QL_FORMAT, "rows of %lld values, a block of %s has %lld", (long long)tensor->ne[0],
                       tensor->type->name, (long long)tensor->type->count);
    if (!ql_mul_size(elements / (uint64_t)tensor->type->count, (uint64_t)tensor->type->bytes, &tensor->size) ||
        tensor->size > INT64_MAX)
        return ql_fail(QL_FORMAT, "it has 2^63 bytes or more");
    return take_number(c, 8, "offset", &tensor->begin);
}

/* ---- does it fit together? ------------------------------------------------------------------------------------------------ */

static int by_name(const void *left, const void *right) {
    return strcmp(*(const char *const *)left, *(const char *const *)right);
}

/* The first name that occurs twice, or NULL.   names [count] are sorted. */
static const char *find_twice(const char **names, int64_t count) {
    qsort(names, (size_t)count, sizeof *names, by_name);
    for (int64_t i = 1; i < count; i++)
        if (strcmp(names[i - 1], names[i]) == 0) return names[i];
    return NULL;
}

static ql_status check_names(const gguf_file *file, ql_arena *arena) {
    const char **names, *twice;
    QL_TRY(ql_take(arena, (size_t)(file->key_count + file->count), sizeof *names, &names));
    for (int64_t i = 0; i < file->key_count; i++) names[i] = file->keys[i].name;
    if ((twice = find_twice(names, file->key_count))) return ql_fail(QL_FORMAT, "key \"%.200s\" twice", twice);
    for (int64_t i = 0; i < file->count; i++) names[i] = file->tensors[i].name;
    if ((twice = find_twice(names, file->count))) return ql_fail(QL_FORMAT, "tensor \"%s\" twice", twice);
    return QL_OK;
}

static ql_status read_alignment(gguf_file *file) {
    const gguf_key *key = gguf_key_of(file, "general.alignment");
    file->alignment = GGUF_ALIGNMENT;
    if (!key) return QL_OK;
    if (key->kind != GGUF_U32)
        return ql_fail(QL_FORMAT, "general.alignment is %s, expected u32", gguf_kind_name(key->kind));
    file->alignment = number_at(key->value, 4);
    if (file->alignment == 0 || file->alignment & (file->alignment - 1))
        return ql_fail(QL_FORMAT, "general.alignment is %llu, expected a power of two",
                       (unsigned long long)file->alignment);
    return QL_OK;
}

/* Rounded up to the alignment; false on overflow. */
static bool align_up(uint64_t value, uint64_t alignment, uint64_t *aligned) {
    if (!ql_add_size(value, alignment - 1, aligned)) return false;
    *aligned &= ~(alignment - 1);
    return true;
}

static ql_status place_tensors(gguf_file *file, uint64_t header_size) {
    uint64_t size = ql_source_size(file->source), end = 0;
    if (!align_up(header_size, file->alignment, &file->data) || (file->count && file->data > size))
        return ql_fail(QL_FORMAT, "the data begin beyond the end of the file, %llu bytes", (unsigned long long)size);
    for (int64_t i = 0; i < file->count; i++) {
        gguf_tensor *t = &file->tensors[i];
        if (t->begin != end)
            return ql_fail(QL_FORMAT, "tensor \"%s\" has offset %llu, the one before ends at %llu", t->name,
                           (unsigned long long)t->begin, (unsigned long long)end);
        /* The padding of the last tensor may be missing. */
        if (t->size > size - file->data || end > size - file->data - t->size)
            return ql_fail(QL_FORMAT, "tensor \"%s\" ends %llu bytes behind the end of the file; download it again",
                           t->name, (unsigned long long)(end + t->size - (size - file->data)));
        t->begin += file->data;
        if (!align_up(end + t->size, file->alignment, &end)) return ql_fail(QL_FORMAT, "offsets beyond 2^64");
    }
    return QL_OK;
}

/* ---- opening --------------------------------------------------------------------------------------------------------------- */

static ql_status read_version(cursor *c, gguf_file *file) {
    const uint8_t *magic;
    uint64_t version;
    QL_TRY(take(c, 4, 1, "magic", &magic));
    if (memcmp(magic, "GGUF", 4) != 0) return ql_fail(QL_FORMAT, "not a GGUF file: it does not begin with \"GGUF\"");
    QL_TRY(take_number(c, 4, "version", &version));
    file->version = (uint32_t)version;
    if (version == 2 || version == GGUF_VERSION) return QL_OK;
    if ((version & 0xffff) == 0)
        return ql_fail(QL_FORMAT, "version %llx: a file of big-endian numbers", (unsigned long long)version);
    return ql_fail(QL_FORMAT, "version %llu, qalib reads 2 and 3; convert the model again",
                   (unsigned long long)version);
}

/* The least that a key and a tensor take: counts from the file are compared before anything is allocated for them. */
enum { LEAST_KEY = 8 + 1 + 4 + 1, LEAST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8 };

static ql_status take_count(cursor *c, const char *what, uint64_t least, int64_t *count) {
    uint64_t value;
    QL_TRY(take_number(c, 8, what, &value));
    if (value > (c->file_size - c->at) / least)
        return ql_fail(QL_FORMAT, "%lld %s, more than the file has room for", (long long)value, what);
    *count = (int64_t)value;
    return QL_OK;
}

static ql_status walk(cursor *c, gguf_file *file) {
    QL_TRY(read_version(c, file));
    QL_TRY(take_count(c, "tensors", LEAST_TENSOR, &file->count));
    QL_TRY(take_count(c, "keys", LEAST_KEY, &file->key_count));
    QL_TRY(ql_take(c->arena, (size_t)file->key_count, sizeof *file->keys, &file->keys));
    QL_TRY(ql_take(c->arena, (size_t)file->count, sizeof *file->tensors, &file->tensors));
    for (int64_t i = 0; i < file->key_count; i++) {
        gguf_key *key = &file->keys[i];
        QL_TRY(ql_context(take_name(c, "its name", UINT16_MAX, &key->name), "key %lld", (long long)i));
        QL_TRY(ql_context(take_value(c, key), "key \"%.200s\"", key->name));
    }
    for (int64_t i = 0; i < file->count; i++) {
        gguf_tensor *tensor = &file->tensors[i];
        QL_TRY(ql_context(take_name(c, "its name", GGUF_NAME_SIZE - 1, &tensor->name), "tensor %lld", (long long)i));
        QL_TRY(ql_context(take_tensor(c, tensor), "tensor \"%s\"", tensor->name));
    }
    QL_TRY(read_alignment(file));
    QL_TRY(check_names(file, c->arena));
    return place_tensors(file, c->at);
}

static ql_status load_header(gguf_file *file, ql_arena *arena) {
    uint64_t size = ql_source_size(file->source);
    for (uint64_t load = FIRST_LOAD;; load *= 2) {
        ql_mark mark = ql_arena_mark(arena);
        cursor c = {.path = file->path, .size = load < size ? load : size, .file_size = size, .arena = arena};
        void *bytes;
        QL_TRY(ql_take(arena, c.size + 1, 1, &bytes));
        QL_TRY(ql_source_read(file->source, bytes, c.size, 0));
        c.bytes = bytes;
        ql_status status = walk(&c, file);
        if (!c.short_of || load >= MOST_HEADER) return status;
        ql_arena_release(arena, mark);
    }
}

ql_status gguf_open(const char *path, ql_arena *arena, gguf_file *file) {
    char *copy;
    *file = (gguf_file){0};
    QL_TRY(ql_arena_string(arena, path, &copy));
    file->path = copy;
    QL_TRY(ql_source_open(path, NULL, &file->source));
    ql_status status = ql_context(load_header(file, arena), "%s", path);
    if (status != QL_OK) gguf_close(file);
    return status;
}

void gguf_close(gguf_file *file) {
    ql_source_close(file->source);
    file->source = NULL;
}

ql_status gguf_read(const gguf_file *file, const gguf_tensor *tensor, void *data) {
    return ql_source_read(file->source, data, tensor->size, tensor->begin);
}

const gguf_tensor *gguf_find(const gguf_file *file, const char *name) {
    for (int64_t i = 0; i < file->count; i++)
        if (strcmp(file->tensors[i].name, name) == 0) return &file->tensors[i];
    return NULL;
}

bool gguf_is_file(const char *path) {
    char magic[4] = {0};
    ql_source *source;
    if (ql_source_open(path, NULL, &source) != QL_OK) return false;
    bool is = ql_source_size(source) >= sizeof magic && ql_source_read(source, magic, sizeof magic, 0) == QL_OK &&
              memcmp(magic, "GGUF", sizeof magic) == 0;
    ql_source_close(source);
    return is;
}

ql_status gguf_model_file(const char *path, ql_arena *arena, char **file) {
    char *config;
    *file = NULL;
    QL_TRY(ql_arena_format(arena, &config, "%s/config.json", path));
    if (ql_path_exists(config)) return QL_OK;
    if (gguf_is_file(path)) return ql_arena_string(arena, path, file);
    QL_TRY(ql_arena_format(arena, file, "%s/" GGUF_MODEL, path));
    if (!gguf_is_file(*file)) *file = NULL;
    return QL_OK;
}

/* ---- values ---------------------------------------------------------------------------------------------------------------- */

const gguf_key *gguf_key_of(const gguf_file *file, const char *name) {
    for (int64_t i = 0; i < file->key_count; i++)
        if (strcmp(file->keys[i].name, name) == 0) return &file->keys[i];
    return NULL;
}

static ql_status find_key(const gguf_file *file, const char *name, const gguf_key **key) {
    *key = gguf_key_of(file, name);
    return *key ? QL_OK : ql_fail(QL_FORMAT, "%s: key \"%s\" is missing", file->path, name);
}

static ql_status wrong_kind(const gguf_file *file, const gguf_key *key, const char *expected) {
    return ql_fail(QL_FORMAT, "%s: key \"%s\" is %s, expected %s", file->path, key->name, gguf_kind_name(key->kind),
                   expected);
}

ql_status gguf_int_or(const gguf_file *file, const char *name, int64_t least, int64_t most, int64_t *value) {
    const gguf_key *key = gguf_key_of(file, name);
    if (!key) return QL_OK;
    bool is_signed = key->kind == GGUF_I8 || key->kind == GGUF_I16 || key->kind == GGUF_I32 || key->kind == GGUF_I64;
    bool is_unsigned = key->kind == GGUF_U8 || key->kind == GGUF_U16 || key->kind == GGUF_U32 || key->kind == GGUF_U64;
    if (!is_signed && !is_unsigned) return wrong_kind(file, key, "an integer");
    int unused = 64 - 8 * (int)kinds[key->kind].size;
    uint64_t bits = number_at(key->value, kinds[key->kind].size);
    int64_t found = is_signed ? (int64_t)(bits << unused) >> unused : bits > INT64_MAX ? INT64_MAX : (int64_t)bits;
    if (found < least || found > most)
        return ql_fail(QL_FORMAT, "%s: key \"%s\" is %lld, expected %lld .. %lld", file->path, name, (long long)found,
                       (long long)least, (long long)most);
    *value = found;
    return QL_OK;
}

ql_status gguf_int(const gguf_file *file, const char *name, int64_t least, int64_t most, int64_t *value) {
    const gguf_key *key;
    QL_TRY(find_key(file, name, &key));
    return gguf_int_or(file, name, least, most, value);
}

ql_status gguf_real_or(const gguf_file *file, const char *name, double *value) {
    const gguf_key *key = gguf_key_of(file, name);
    float single;
    if (!key) return QL_OK;
    if (key->kind != GGUF_F32 && key->kind != GGUF_F64) return wrong_kind(file, key, "a real number");
    if (key->kind == GGUF_F64) memcpy(value, key->value, sizeof *value);
    else memcpy(&single, key->value, sizeof single), *value = single;
    return QL_OK;
}

ql_status gguf_real(const gguf_file *file, const char *name, double *value) {
    const gguf_key *key;
    QL_TRY(find_key(file, name, &key));
    return gguf_real_or(file, name, value);
}

ql_status gguf_string(const gguf_file *file, const char *name, ql_arena *arena, char **value) {
    const gguf_key *key;
    QL_TRY(find_key(file, name, &key));
    if (key->kind != GGUF_STRING) return wrong_kind(file, key, "a string");
    if (memchr(key->value, 0, key->count)) return ql_fail(QL_FORMAT, "%s: key \"%s\" contains a NUL", file->path, name);
    QL_TRY(ql_take(arena, key->count + 1, 1, value));
    memcpy(*value, key->value, key->count);
    (*value)[key->count] = 0;
    return QL_OK;
}
