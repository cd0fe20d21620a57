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
