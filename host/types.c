#include "host/qalib.h"

static const struct {
    const char *name;
    size_t size;
} table[] = {
#define ROW(name, text, bytes) [name] = {text, bytes},
    QL_DTYPES(ROW)
#undef ROW
};

const char *ql_dtype_name(ql_dtype dtype) { return (size_t)dtype < QL_DTYPE_COUNT ? table[dtype].name : "?"; }
size_t ql_dtype_size(ql_dtype dtype) { return (size_t)dtype < QL_DTYPE_COUNT ? table[dtype].size : 0; }

static const struct {
    const char *name;
    int64_t weights, bytes;
} blocks[] = {
#define BLOCK_ROW(name, text, number, weights, bytes) [name] = {text, weights, bytes},
    QL_BLOCK_TYPES(BLOCK_ROW)
#undef BLOCK_ROW
};

const char *ql_block_name(ql_block_type type) { return (size_t)type < QL_BLOCK_TYPE_COUNT ? blocks[type].name : NULL; }
int64_t ql_block_weights(ql_block_type type) { return (size_t)type < QL_BLOCK_TYPE_COUNT ? blocks[type].weights : 0; }
int64_t ql_block_bytes(ql_block_type type) { return (size_t)type < QL_BLOCK_TYPE_COUNT ? blocks[type].bytes : 0; }
