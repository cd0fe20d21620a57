/* Products for tests: random operands of any combination, what they stand for in double precision, and one run on a backend.
 *
 *   check_product(b, w4a16(70, 192, 64), 5);     // pack, check, unpack, execute twice, compare with the truth
 *
 * All device memory starts as poison: packed weights, workspaces, results.
 */
#ifndef TESTS_PRODUCT_H
#define TESTS_PRODUCT_H

#include "tests/backend.h"

/* The numbers of one product: as the library takes them, in host memory, and what they stand for in F64. */
typedef struct operands {
    ql_product p;
    int64_t m;
    ql_mat x, x_scale, x_zero, bias;
    ql_weight weight;
    ql_mat exact_x, exact_w; /* [m][k], [n][k] F64 */
} operands;

/* The usual combinations: 4-bit codes times BF16 to F32, at most 300 tokens; I8 times I8, and FP8, at most 40. */
ql_product w4a16(int64_t n, int64_t k, int64_t group);
ql_product w8a8(int64_t n, int64_t k, ql_scale_mode x_scale, ql_scale_mode w_scale, ql_dtype y);
ql_product f8(int64_t n, int64_t k, ql_dtype x, ql_dtype w, ql_scale_mode x_scale, ql_scale_mode w_scale, ql_dtype y);

operands make_operands(backend *b, ql_product p, int64_t m);

/* Values that use the whole range of a type: I8 -127 .. 127, U8 and I32 0 .. limit - 1, floats normal. */
void fill_values(ql_mat mat, uint64_t seed, int64_t limit);

/* y in F64, straight from the definition. */
ql_mat truth_of(backend *b, const operands *o);
/* How far a result may be from it, in the Frobenius norm. */
double bound_of(const ql_product *p);

/* The steps of run_product, for tests that want something in between. */
ql_plan *make_plan(ql_ctx *ctx, const ql_product *p);
ql_weight weight_on_device(backend *b, const ql_weight *w);
void *poisoned_bytes(backend *b, size_t bytes);
void *pack_operands(backend *b, const ql_plan *plan, const operands *o);
void assert_unpacks(backend *b, const ql_plan *plan, const operands *o, const void *packed);
ql_arguments arguments_of(backend *b, const operands *o, const void *packed);
void execute_product(backend *b, ql_ctx *ctx, const ql_plan *plan, const ql_arguments *a);
ql_mat result_of(backend *b, ql_mat y);

/* All of them; and the same bits with another number of threads.  Returns y in host memory. */
ql_mat run_product(backend *b, const operands *o);
/* run_product is within bound_of of truth_of, for normal values of x and for some a hundred times larger. */
void check_product(backend *b, ql_product p, int64_t m);

#endif
