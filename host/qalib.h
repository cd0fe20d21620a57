/* qalib: quantize large language models.  The one public header of libqalib.
 *
 *   ql_ctx *ctx;
 *   if (ql_ctx_open("auto", 0, &ctx)) { fprintf(stderr, "%s\n", ql_last_error()); return 1; }
 *   ql_gemm(ctx, x, w, bias, y);                    // every operation: context first, matrices by value
 *   ql_ctx_close(ctx);
 *
 * Conventions
 *   Letters: m tokens, n outputs, k inputs, g group size, G groups per row.  X[m][k], W[n][k], H[k][k], all row-major.
 *   Memory: matrices hold pointers into the memory of their context (host memory on the CPU, device memory on CUDA); the
 *   caller owns it, operations never allocate what outlives them.  Pointers called "host" are host memory on every backend.
 *   Errors: a function returns QL_OK or a status and leaves one sentence for ql_last_error() of the calling thread.
 *   Order: operations of one context run in the order of their calls; results in host memory are complete on return.
 *   Threads: a context is used by one thread at a time; different contexts are independent.
 */
#ifndef QALIB_H
#define QALIB_H

#include <stddef.h>
#include <stdint.h>

#define QL_VERSION_MAJOR 0
#define QL_VERSION_MINOR 1
#define QL_VERSION_PATCH 0
#define QL_VERSION "0.1.0"

#if defined(__GNUC__)
#define QL_API __attribute__((visibility("default")))
#else
#define QL_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status: name, exit code of the programs, meaning -------------------------------------------------------------- */

#define QL_STATUSES(X)                                                                                                 \
    X(QL_OK, 0, "success")                                                                                             \
    X(QL_USAGE, 64, "the command line cannot be understood")                                                           \
    X(QL_FORMAT, 65, "input data are malformed, damaged or contradictory")                                             \
    X(QL_MISSING, 66, "an input does not exist")                                                                       \
    X(QL_DEVICE, 69, "a device or service is not available")                                                           \
    X(QL_UNSUPPORTED, 69, "no implementation for this type, shape or device")                                          \
    X(QL_INVALID, 70, "a library call had invalid arguments")                                                          \
    X(QL_NUMERIC, 70, "a matrix is not positive definite, or a result is not finite")                                  \
    X(QL_INTERNAL, 70, "a defect in qalib")                                                                            \
    X(QL_NOMEM, 71, "out of memory")                                                                                   \
    X(QL_DISK, 73, "an output cannot be created: it exists, is locked, or the disk is full")                           \
    X(QL_IO, 74, "reading or writing failed")                                                                          \
    X(QL_INTERRUPTED, 75, "stopped by a signal; the job can be resumed")                                               \
    X(QL_DENIED, 77, "permission denied")                                                                              \
    X(QL_MISMATCH, 78, "recipe, model or earlier work do not fit together")

typedef enum ql_status {
#define QL_STATUS_ENUM(name, code, text) name,
    QL_STATUSES(QL_STATUS_ENUM)
#undef QL_STATUS_ENUM
} ql_status;

/* Name ("QL_FORMAT"), meaning, and exit code of a status.  Static strings. */
QL_API const char *ql_status_name(ql_status status);
QL_API const char *ql_status_text(ql_status status);
QL_API int ql_status_exit_code(ql_status status);

/* One sentence about the last failure of this thread, "" if there was none.  Valid until the next failure. */
QL_API const char *ql_last_error(void);

/* "0.1.0", the version of the library that runs (the macros say which header was compiled). */
QL_API const char *ql_version(void);

/* ---- number formats and matrices ----------------------------------------------------------------------------------- */

/* name, safetensors name, bytes per element */
#define QL_DTYPES(X)                                                                                                   \
    X(QL_F64, "F64", 8)                                                                                                \
    X(QL_F32, "F32", 4)                                                                                                \
    X(QL_F16, "F16", 2)                                                                                                \
    X(QL_BF16, "BF16", 2)                                                                                              \
    X(QL_F8_E4M3, "F8_E4M3", 1)                                                                                        \
    X(QL_F8_E5M2, "F8_E5M2", 1)                                                                                        \
    X(QL_I64, "I64", 8)                                                                                                \
    X(QL_I32, "I32", 4)                                                                                                \
    X(QL_I16, "I16", 2)                                                                                                \
    X(QL_I8, "I8", 1)                                                                                                  \
    X(QL_U64, "U64", 8)                                                                                                \
    X(QL_U8, "U8", 1)                                                                                                  \
    X(QL_BOOL, "BOOL", 1)

typedef enum ql_dtype {
#define QL_DTYPE_ENUM(name, text, bytes) name,
    QL_DTYPES(QL_DTYPE_ENUM)
#undef QL_DTYPE_ENUM
        QL_DTYPE_COUNT
} ql_dtype;

QL_API const char *ql_dtype_name(ql_dtype dtype); /* "BF16" */
QL_API size_t ql_dtype_size(ql_dtype dtype);      /* bytes per element */
/* F8_E4M3 has no infinity: 448 is its largest value, 0x7f and 0xff are NaN.  F8_E5M2 is the upper byte of a binary16. */

/* A row-major view: element (r, c) lies at data[r * ld + c].  ld >= cols, in elements.  A vector is one row.
 * data == NULL means "absent" where a parameter is optional. */
typedef struct ql_mat {
    void *data;
    ql_dtype dtype;
    int64_t rows, cols, ld;
} ql_mat;

/* How a weight W[n][k] is rounded: code q in 0 .. 2^bits-1 stands for scale * (q - zero), with one (scale, zero) per row and
 * group of inputs.  scale > 0, and exactly representable in FP16 unless a caller asked for unrounded scales. */
typedef struct ql_grid {
    int bits;      /* 2 to 8 */
    int64_t group; /* inputs per group; the last group may be shorter */
    ql_mat scale;  /* F32 [n][G], G = ceil(k / group) */
    ql_mat zero;   /* U8  [n][G] */
    ql_mat g_idx;  /* I32 [1][k], group of each input; absent: input i belongs to group i / group */
} ql_grid;

/* What one scale belongs to. */
typedef enum ql_scale_mode {
    QL_SCALE_NONE,   /* values count as they are */
    QL_SCALE_TENSOR, /* one */
    QL_SCALE_ROW,    /* x: one per token; W: one per output */
    QL_SCALE_GROUP,  /* W: one per output and `group` inputs */
    QL_SCALE_BLOCK   /* x: one per token and 128 inputs; W: one per 128 outputs x 128 inputs */
} ql_scale_mode;

/* A quantized weight as the products read it.  Row n of `codes` is one little-endian stream of k codes of `bits` bits:
 * code i occupies bits [i*bits, (i+1)*bits), so for 3 bits codes cross word borders.  The stream is padded to a whole word. */
typedef struct ql_qweight {
    int64_t n, k;
    ql_mat codes; /* I32 [n][ceil(k * bits / 32)] */
    ql_grid grid;
} ql_qweight;

/* ---- context -------------------------------------------------------------------------------------------------------- */

typedef struct ql_ctx ql_ctx;

/* Opens a device: "cpu", "cuda", "cuda:N", or "auto" (the first CUDA device if there is a usable one, else the CPU).
 * threads: CPU threads, 0 = all that the process may use.  Results do not depend on it.
 * QL_DEVICE if the device does not exist (the sentence says what was found), QL_USAGE for another name. */
QL_API ql_status ql_ctx_open(const char *device, int threads, ql_ctx **ctx);
QL_API void ql_ctx_close(ql_ctx *ctx); /* NULL is allowed */

QL_API const char *ql_ctx_device(const ql_ctx *ctx);   /* "cpu" or "cuda:0" */
QL_API const char *ql_ctx_describe(const ql_ctx *ctx); /* processor or GPU, and the libraries in use */
QL_API int ql_ctx_threads(const ql_ctx *ctx);

/* Device memory, 256-byte aligned; QL_NOMEM with needed and free bytes if there is not enough. */
QL_API ql_status ql_alloc(ql_ctx *ctx, size_t bytes, void **data);
QL_API void ql_free(ql_ctx *ctx, void *data);
QL_API ql_status ql_upload(ql_ctx *ctx, void *device, const void *host, size_t bytes);
QL_API ql_status ql_download(ql_ctx *ctx, void *host, const void *device, size_t bytes);
QL_API ql_status ql_sync(ql_ctx *ctx);

/* Page-locked host memory, from which copies run beside the operations; *host is NULL where device memory is host memory. */
QL_API ql_status ql_pin(ql_ctx *ctx, size_t bytes, void **host);
QL_API void ql_unpin(ql_ctx *ctx, void *host); /* NULL is allowed */
/* An upload beside the operations that are under way, from another thread than theirs; returns when the bytes are there. */
QL_API ql_status ql_upload_beside(ql_ctx *ctx, void *device, const void *host, size_t bytes);

/* The stream on which the context's operations run (a cudaStream_t; NULL on the CPU): what ql_execute wants when a product
 * shall run in order with them. */
QL_API void *ql_ctx_stream(const ql_ctx *ctx);
/* Begins a range in the timeline of a profiler (NVTX), within those that are open; NULL ends the innermost.  Nothing on the CPU. */
QL_API void ql_annotate(ql_ctx *ctx, const char *name);

/* ---- forward pass ----------------------------------------------------------------------------------------------------- */

/* y = x w^T + bias.   x [m][k], w [n][k] and y [m][n] F32, never TF32; or x and w BF16 and y F32 or BF16, rounded once, after the bias.
 * bias [1][n] F32 or absent.  FP32 accumulation, no sum split over threads or blocks. */
QL_API ql_status ql_gemm(ql_ctx *ctx, ql_mat x, ql_mat w, ql_mat bias, ql_mat y);

/* The same with a quantized weight, which is expanded tile by tile, never as a whole. */
QL_API ql_status ql_qgemm(ql_ctx *ctx, ql_mat x, const ql_qweight *w, ql_mat bias, ql_mat y);

/* The next six operations take activations in F32 or BF16, of one type where nothing else is said: computed in F32, rounded once
 * when they are stored. */

/* x[i] = table[ids[i]].   table [v][h], x [m][h] F32 or BF16, ids [1][m] I32 in 0 .. v-1. */
QL_API ql_status ql_embed(ql_ctx *ctx, ql_mat table, ql_mat ids, ql_mat x);

/* y = x / sqrt(mean(x^2) + eps) * weight, over runs of `weight.cols` values: a row may hold several heads.
 * x, y [m][heads * d], each F32 or BF16, weight [1][d] F32; y may be x. */
QL_API ql_status ql_rmsnorm(ql_ctx *ctx, ql_mat x, ql_mat weight, float eps, ql_mat y);

/* Rotary embedding in place, the halves of a head paired (Hugging Face order).   x [m][heads * d] F32 or
 * BF16, position [1][m] I32, cos and sin [positions][d / 2] F32. */
QL_API ql_status ql_rope(ql_ctx *ctx, ql_mat x, int64_t heads, ql_mat position, ql_mat cos, ql_mat sin);

/* Causal attention within each sequence; query head h reads key/value head h / (heads / kv_heads).
 * q, out [m][heads * d], k, v [m][kv_heads * d], all F32 or all BF16 (on a GPU heads of at most 256 values; in BF16 tensor cores,
 * with weights rounded to BF16).  Sequence s holds rows start[s] .. start[s+1]-1; start is host memory with n_seq + 1 entries.
 * window: keys a query sees including its own, 0 = all. */
typedef struct ql_attention_shape {
    int64_t heads, kv_heads, window;
    float scale; /* of q k^T, normally 1 / sqrt(d) */
} ql_attention_shape;
QL_API ql_status ql_attention(ql_ctx *ctx, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape,
                              const int64_t *start, int64_t n_seq, ql_mat out);

/* The same for one sequence that goes on: its keys and values lie in a cache, and the m queries are those of its last m
 * rows.   q, out [m][heads * d], k, v [t][kv_heads * d], t >= m, all F32. */
QL_API ql_status ql_attention_cached(ql_ctx *ctx, ql_mat q, ql_mat k, ql_mat v, const ql_attention_shape *shape,
                                     ql_mat out);

/* y = gate / (1 + exp(-gate)) * up, all [m][f] F32 or BF16; y may be gate. */
QL_API ql_status ql_swiglu(ql_ctx *ctx, ql_mat gate, ql_mat up, ql_mat y);

/* x += alpha y, both [m][h] F32, BF16 or F64, or x F32 and y BF16; y may be x. */
QL_API ql_status ql_add(ql_ctx *ctx, ql_mat x, float alpha, ql_mat y);

/* dst = src, between F32, F16, BF16 and F64, to nearest even; out of range becomes infinite. */
QL_API ql_status ql_convert(ql_ctx *ctx, ql_mat src, ql_mat dst);

/* Index (row * cols + col) of the first NaN or infinity, or -1.   x F32, F16, BF16 or F64; *index is host memory. */
QL_API ql_status ql_find_nonfinite(ql_ctx *ctx, ql_mat x, int64_t *index);

/* ---- statistics ------------------------------------------------------------------------------------------------------- */

/* H += X^T X, upper triangle, the lower is not touched.   x [m][k] F32 or BF16, whose products are exact in F32; h [r][k], r <= k,
 * F32 or F64 (products and sums then in double): the first r rows of H.
 * So H can be had in stripes: rows p .. p + r - 1 are what ql_hessian adds for columns p .. k - 1 of x, a view, to h [r][k - p].  Where p is
 * a multiple of QL_HESSIAN_STEP, and r one too or k - p, every element has the bits that one call for the whole H gives on that device. */
enum { QL_HESSIAN_STEP = 1024 };
QL_API ql_status ql_hessian(ql_ctx *ctx, ql_mat x, ql_mat h);

/* C += Y^T X: how two streams of activations go together.   y [m][a], x [m][b], both F32 or both BF16, whose products are exact in F32; c [a][b] F32. */
QL_API ql_status ql_cross(ql_ctx *ctx, ql_mat y, ql_mat x, ql_mat c);

/* Per input: sum of squares, sum of magnitudes, minimum and maximum, all updated in place.
 * x [m][k] F32 or BF16; sum_sq, sum_abs [1][k] F64; min, max [1][k] F32, which start as +inf and -inf. */
QL_API ql_status ql_moments(ql_ctx *ctx, ql_mat x, ql_mat sum_sq, ql_mat sum_abs, ql_mat min, ql_mat max);

/* count[b] += number of x whose magnitude, rounded to BF16, has the bits b.   x [m][k] F32 or BF16, count [1][32768] U64. */
QL_API ql_status ql_abs_hist(ql_ctx *ctx, ql_mat x, ql_mat count);

/* ---- quantization ------------------------------------------------------------------------------------------------------ */

/* codes = round-to-nearest of w on the grid, clamped.   w [n][k] F32, codes [n][k] U8. */
QL_API ql_status ql_quantize(ql_ctx *ctx, ql_mat w, const ql_grid *grid, ql_mat codes);

/* w = scale * (code - zero).   codes [n][k] U8, w [n][k] F32. */
QL_API ql_status ql_dequantize(ql_ctx *ctx, ql_mat codes, const ql_grid *grid, ql_mat w);

/* A matrix with one byte per value, as the products of eight bits read it: value = scale * code, for U8 scale * (code - zero).
 * One scale, and for U8 one zero point, for every tile of values:
 *   QL_SCALE_TENSOR  all values                      scale [1][1]
 *   QL_SCALE_ROW     a row                           [1][rows]
 *   QL_SCALE_GROUP   `group` neighbours in a row     [rows][ceil(cols / group)]; 128 is what goes with weights in blocks
 *   QL_SCALE_BLOCK   128 x 128 values                [ceil(rows / 128)][ceil(cols / 128)]
 * Tiles at the edges may be smaller. */
typedef struct ql_values {
    ql_mat codes; /* I8, U8, F8_E4M3 or F8_E5M2 [rows][cols] */
    ql_scale_mode mode;
    int64_t group; /* of QL_SCALE_GROUP */
    ql_mat scale;  /* F32 */
    ql_mat zero;   /* I32, shaped like scale; present for U8 alone */
} ql_values;

/* Chooses the scale of every tile from its values and rounds them: writes codes, scale and zero of `values`.
 *   I8, F8  scale = max |x| / 127, 448 (E4M3), 57344 (E5M2).   U8  scale = (max - min) / 255, zero = round(-min / scale), with
 *   max and min of the values and 0.
 * No scale is below 2^-126, so zeros and subnormals are rounded like all values.  A tile with a NaN or an infinity gets the scale
 * NaN: what is computed from it is NaN.   x [rows][cols] F32, F16 or BF16. */
QL_API ql_status ql_quantize_dynamic(ql_ctx *ctx, ql_mat x, const ql_values *values);

/* Rounds with given scales and zero points, which must be positive and finite, and 0 .. 255; writes the codes.
 *   I8  round(x / scale), at most 127 in magnitude (-128 is not used)    U8  round(x / scale) + zero, in 0 .. 255
 *   F8  x / scale to the nearest value; beyond the largest one, also infinities, becomes the largest one
 * Quotients are rounded to F32, then ties go to even.  NaN becomes the NaN of F8, and the code of 0 in integers. */
QL_API ql_status ql_quantize_static(ql_ctx *ctx, ql_mat x, const ql_values *values);

/* x = scale * (code - zero), rounded once.   x [rows][cols] F32, F16 or BF16. */
QL_API ql_status ql_dequantize_values(ql_ctx *ctx, const ql_values *values, ql_mat x);

/* NF4 (host/nf4.h): blocks of 64 weights, row by row and across the ends of rows, the last one may be shorter; the value of a code
 * times the largest magnitude of its block.  Blocks of zeros get the code of 0.
 * w [n][k] F32, finite; absmax [1][ceil(n * k / 64)] F32; codes [n][k] U8, one per byte. */
QL_API ql_status ql_nf4_quantize(ql_ctx *ctx, ql_mat w, ql_mat absmax, ql_mat codes);
QL_API ql_status ql_nf4_dequantize(ql_ctx *ctx, ql_mat codes, ql_mat absmax, ql_mat w);

/* The block formats of GGUF, bytes as ggml defines them (host/kquant.h has the layouts): name, text, number in files, weights per
 * block, bytes per block. */
#define QL_BLOCK_TYPES(X)                                                                                              \
    X(QL_Q4_0, "Q4_0", 2, 32, 18)                                                                                      \
    X(QL_Q4_1, "Q4_1", 3, 32, 20)                                                                                      \
    X(QL_Q5_0, "Q5_0", 6, 32, 22)                                                                                      \
    X(QL_Q5_1, "Q5_1", 7, 32, 24)                                                                                      \
    X(QL_Q8_0, "Q8_0", 8, 32, 34)                                                                                      \
    X(QL_Q2_K, "Q2_K", 10, 256, 84)                                                                                    \
    X(QL_Q3_K, "Q3_K", 11, 256, 110)                                                                                   \
    X(QL_Q4_K, "Q4_K", 12, 256, 144)                                                                                   \
    X(QL_Q5_K, "Q5_K", 13, 256, 176)                                                                                   \
    X(QL_Q6_K, "Q6_K", 14, 256, 210)                                                                                   \
    X(QL_IQ4_NL, "IQ4_NL", 20, 32, 18)

typedef enum ql_block_type {
#define QL_BLOCK_ENUM(name, text, number, weights, bytes) name,
    QL_BLOCK_TYPES(QL_BLOCK_ENUM)
#undef QL_BLOCK_ENUM
        QL_BLOCK_TYPE_COUNT
} ql_block_type;

QL_API const char *ql_block_name(ql_block_type type); /* "Q4_K"; NULL if there is no such type */
QL_API int64_t ql_block_weights(ql_block_type type);  /* 32 or 256 */
QL_API int64_t ql_block_bytes(ql_block_type type);    /* of one block */

/* Blocks of a weight and back, the bytes that ggml makes.   w [n][k] F32, k a multiple of the weights of a block; blocks U8
 * [n][k / weights * bytes]; importance F32 [1][k] or absent: the mean square of each input, which weighs the errors (Q8_0 does
 * not look at it).  Importance that is 0 over a whole block makes zeros of it.  Values must be finite. */
QL_API ql_status ql_encode_blocks(ql_ctx *ctx, ql_mat w, ql_mat importance, ql_block_type type, ql_mat blocks);
QL_API ql_status ql_decode_blocks(ql_ctx *ctx, ql_mat blocks, ql_block_type type, ql_mat w);

/* Codes, one per byte, to the stream of ql_qweight and back: exact inverses.  codes [n][k] U8, every code below 2^bits
 * (QL_INVALID otherwise: a code too large would damage its neighbours); words [n][ceil(k * bits / 32)] I32. */
QL_API ql_status ql_pack(ql_ctx *ctx, ql_mat codes, int bits, ql_mat words);
QL_API ql_status ql_unpack(ql_ctx *ctx, ql_mat words, int bits, ql_mat codes);

/* Chooses scale and zero point of every group; writes grid->scale and grid->zero.   w [n][k] F32.
 *   symmetric: zero = 2^(bits-1), else in 1 .. 2^bits-1 (0 cannot be stored by GPTQ v1), the range always contains 0.
 *   search: instead of taking the range of the weights, the candidate of least squared error, each column weighted by
 *           importance[k] (F32 [1][k], for instance the diagonal of H; absent: all equal).
 *   literature: grids of the GPTQ paper's code: scale not rounded to FP16, zero point free in 0 .. 2^bits-1.
 *   half_quadratic: HQQ's search for range and zero point (host/hqq.h); asymmetric, without importance. */
typedef struct ql_grid_rule {
    int symmetric, search, literature, half_quadratic;
} ql_grid_rule;
QL_API ql_status ql_grid_search(ql_ctx *ctx, ql_mat w, ql_mat importance, const ql_grid_rule *rule, ql_grid *grid);

/* y = diag(rows) x diag(cols).   x, y [m][k] F32; rows [1][m], cols [1][k] F32, either may be absent; y may be x. */
QL_API ql_status ql_scale(ql_ctx *ctx, ql_mat x, ql_mat rows, ql_mat cols, ql_mat y);

/* Per input: the largest |w| of its column, and the mean over rows of |w| / (largest |w| of the row's group + 1e-6), which AWQ's
 * second formula calls the weight's salience.   w [n][k] F32, max and mean [1][k] F32. */
QL_API ql_status ql_magnitude(ql_ctx *ctx, ql_mat w, int64_t group, ql_mat max, ql_mat mean);

/* Scale and zero point of every group as ql_grid_search chooses them without search, but from weights clipped at 1.00, 0.95 ..
 * 0.55 of the group's largest magnitude, whichever loses least in e^T H_gg e, e = w - rounded, H_gg the group's diagonal block of H
 * (AWQ's clip search, from statistics instead of samples).   w [n][k] F32, h [k][k] F32 upper triangle;
 * groups of at most 128 inputs, no g_idx. */
QL_API ql_status ql_clip_search(ql_ctx *ctx, ql_mat w, ql_mat h, const ql_grid_rule *rule, ql_grid *grid);

/* r = upper triangular R with P (H + shift I) P^T = R R^T: the Cholesky factor of the index-reversed matrix.
 * h [k][k] F32, upper triangle, unchanged; order [1][k] I32: position p holds column order[p], absent: identity;
 * r [k][k] F32, its lower triangle is zero on return.  QL_NUMERIC if the matrix is not positive definite. */
QL_API ql_status ql_factor(ql_ctx *ctx, ql_mat h, ql_mat order, double shift, ql_mat r);

/* GPTQ on fixed grids.  Columns are rounded one after the other in `order`; the error of earlier columns is fed back:
 *   code_p = round((w_p + sum_{p' < p} e_p' R[p'][p] / R[p][p]) / scale) + zero,   e = w - dequantized,
 * which equals the original recursion through the Cholesky factor of H^-1, without any inverse.
 * w [n][k] F32 (columns in their own order, unchanged), r from ql_factor with the same order, codes [n][k] U8. */
QL_API ql_status ql_gptq(ql_ctx *ctx, ql_mat w, ql_mat r, ql_mat order, const ql_grid *grid, ql_mat codes);

/* x = b (H + shift I)^-1 through the factor R of ql_factor, whose order is given again.   b, x [n][k] F32; x may be b. */
QL_API ql_status ql_solve(ql_ctx *ctx, ql_mat b, ql_mat r, ql_mat order, ql_mat x);

/* Coordinate descent on tr(E (H + shift I) E^T), E = w - dequantized, from given codes: `sweeps` times over all columns, each code
 * to its best value given all others, and before that the scale of its group by least squares, rounded to FP16 (groups that
 * divide 128 and lie side by side; others keep theirs).  Never increases the loss beyond rounding.
 * w [n][k] F32, h [k][k] F32 upper triangle; grid->scale and codes [n][k] U8 are updated. */
QL_API ql_status ql_refine(ql_ctx *ctx, ql_mat w, ql_mat h, double shift, int sweeps, ql_grid *grid, ql_mat codes);

/* GPTQ as its authors published it, in double precision throughout: dead columns set to 1 in H and to 0 in W, damping
 * 0.01 mean(diag H), U = chol_upper(H^-1), blocks of 128 columns, groups found when reached from the weights updated up to
 * the previous block; scales unrounded, zero points free.   w [n][k] F32, unchanged; h [k][k] F64, upper triangle, unchanged,
 * multiplied by `scale` (2 / sequences; it matters beside the 1 of dead columns); grid: bits, group and g_idx given (F32 scale, U8 zero and g_idx are written), codes [n][k] U8.
 * order: none = columns as they come, static = descending diag(H) with groups of neighbouring columns fixed beforehand,
 * dynamic = descending diag(H) with groups in that order (g_idx becomes non-trivial; it must be present). */
typedef enum ql_act_order { QL_ORDER_NONE, QL_ORDER_STATIC, QL_ORDER_DYNAMIC } ql_act_order;
QL_API ql_status ql_gptq_literature(ql_ctx *ctx, ql_mat w, ql_mat h, double scale, int symmetric, ql_act_order order,
                                    ql_grid *grid, ql_mat codes);

/* ---- measures ---------------------------------------------------------------------------------------------------------- */

/* loss = tr(E H E^T) with E = w - q, and norm = tr(W H W^T), both host memory.   w, q [n][k] F32, h [k][k] F32 or F64, upper
 * triangle; h absent stands for the identity. */
QL_API ql_status ql_loss(ql_ctx *ctx, ql_mat w, ql_mat q, ql_mat h, double *loss, double *norm);

/* nll[i] = -log softmax(logits[i])[target[i]] in nats, 0 where target < 0.   logits [m][v] F32, target [1][m] I32,
 * nll [1][m] F64. */
QL_API ql_status ql_nll(ql_ctx *ctx, ql_mat logits, ql_mat target, ql_mat nll);

/* kld[i] = sum_v p log(p / q), p = softmax(base[i]), q = softmax(logits[i]); same[i] = 1 where both have one arg max.
 * base, logits [m][v] F32, kld [1][m] F64, same [1][m] U8. */
QL_API ql_status ql_kld(ql_ctx *ctx, ql_mat base, ql_mat logits, ql_mat kld, ql_mat same);

/* ---- products ------------------------------------------------------------------------------------------------------------
 *
 * y = x W^T + bias in the number formats of quantized inference: describe, plan once, pack the weight once, execute often.
 *
 *   ql_product product = {.n = 4096, .k = 4096, .m_max = 16, .x = QL_BF16, .w = QL_U8, .bits = 4, .y = QL_BF16,
 *                         .w_scale = QL_SCALE_GROUP, .group = 128, .scale = QL_BF16};
 *   ql_plan_make(ctx, &product, &plan);
 *   ql_alloc(ctx, ql_plan_packed(plan), &packed);   ql_alloc(ctx, ql_plan_workspace(plan), &workspace);
 *   ql_pack_weight(ctx, plan, &weight, packed);     // the canonical weight may be freed now
 *   ql_execute(plan, &arguments, workspace, ql_ctx_stream(ctx));
 *
 *   w           x                  x_scale, w_scale                              y
 *   U8, codes   F16, BF16          NONE, GROUP (bits 2, 3, 4, 8)                 F16, BF16, F32
 *   U8, codes   I8, F8_E4M3        ROW, GROUP or ROW (bits 4)                    F16, BF16, F32
 *   I8          I8, U8 with x_zero TENSOR or ROW, TENSOR or ROW                  F16, BF16, F32
 *   I8          I8                 NONE, NONE                                    I32, exact (modulo 2^32)
 *   F8_E4M3, F8_E5M2, each         TENSOR or ROW, TENSOR or ROW; BLOCK, BLOCK    F16, BF16, F32, F8_E4M3
 *   F16, BF16, F32, each           NONE, NONE                                    F16, BF16, F32
 *
 * k: a multiple of 32 for codes, of 16 for values of 8 bits; at most 131072 for I8 with I8 and 65536 with U8, so that no sum
 * of products leaves 32 bits (unless every product of the longest is (-128)^2).  n: any.  Any other combination is QL_UNSUPPORTED.
 *
 * Arithmetic.  Group scales multiply the exact integer code - zero.  I8: exact sums.  Everything else: sums in FP32 in an order
 * fixed by the plan (FP8 on tensor cores: see ql_accumulation).  Then value = (sum * x_scale) * w_scale + bias in FP32, rounded
 * once, to nearest even: beyond the range of F16 and BF16 becomes infinite, of F8_E4M3 becomes +-448.  Dense operands of two types are
 * widened to FP32, exactly.  (Dense products of one type on a GPU round the bias to y's type before, unless QL_ANY_BATCH.) */

/* FP8 on tensor cores: partial sums are added to FP32 every 128 inputs, or never (about 14 bits of each partial sum remain).  Codes times
 * halves: with FAST, (code - zero) * scale may be rounded to x's type for many tokens. */
typedef enum ql_accumulation { QL_PROMOTE, QL_FAST } ql_accumulation;

/* Same bits for the same call; or also for a row of x in whatever batch it stands (one kernel, and one order of sums, for all m). */
typedef enum ql_repeat { QL_SAME_CALL, QL_ANY_BATCH } ql_repeat;

/* What is multiplied, not with which numbers.  Fields that do not matter for a combination are ignored unless stated. */
typedef struct ql_product {
    int64_t n, k;                   /* W [n][k], each 1 .. 2^31-1 */
    int64_t m_max;                  /* most tokens of one execution, 1 .. 2^31-1 */
    ql_dtype x, w, y;               /* w: U8 = codes of `bits` bits on a grid; else values */
    int bits;                       /* 2, 3, 4, 8 where w is U8 */
    ql_scale_mode x_scale, w_scale; /* the table above says which go together */
    int64_t group;                  /* QL_SCALE_GROUP: 32, 64, 128 or k; the last group may be shorter */
    ql_dtype scale;                 /* QL_SCALE_GROUP: F16 or BF16, which keeps the scales and must hold them exactly */
    int zero_points;                /* codes have zero points, else all are 2^(bits-1) */
    int x_zero;                     /* x is U8 with one zero point per token, in 0 .. 255 */
    int ordered;                    /* QL_SCALE_GROUP: inputs belong to groups through a permutation (act-order) */
    int bias;                       /* bias [1][n] F32; not with y I32 */
    ql_accumulation accumulate;
    ql_repeat repeat;
} ql_product;

/* How a product is computed on one device: immutable, shared by any number of threads and streams.  It does not outlive its context. */
typedef struct ql_plan ql_plan;

/* QL_UNSUPPORTED and a sentence that names the violated constraint where there is no such product. */
QL_API ql_status ql_plan_make(ql_ctx *ctx, const ql_product *product, ql_plan **plan);
QL_API void ql_plan_free(ql_plan *plan); /* NULL is allowed */

/* Dense products on a GPU go through cuBLASLt, whose own guess at the fastest algorithm can be improved on by trying: measures up to
 * 16 candidates for m = 1, 2, 4 .. m_max, for about a second each, and adds the best to the text file `file` (written as a
 * whole or not at all), keyed by library, driver, GPU, shape and types.  Nothing else ever measures.  QL_UNSUPPORTED where there is
 * nothing to choose from.  The second function plans with what such a file holds for this machine; it may be missing. */
QL_API ql_status ql_plan_measure(ql_ctx *ctx, const ql_product *product, const char *file);
QL_API ql_status ql_plan_make_measured(ql_ctx *ctx, const ql_product *product, const char *file, ql_plan **plan);

/* The kernel that m tokens run through ("w4a16.sm80"), bytes of workspace whatever m, and bytes of the packed weight. */
QL_API const char *ql_plan_describe(const ql_plan *plan, int64_t m);
QL_API size_t ql_plan_workspace(const ql_plan *plan);
QL_API size_t ql_plan_packed(const ql_plan *plan);

/* The weight in canonical form, in the memory of the context. */
typedef struct ql_weight {
    ql_mat values; /* U8 [n][k], one code per byte; or `w` [n][k] */
    ql_mat scale;  /* F32: TENSOR [1][1], ROW [1][n], GROUP [n][G], BLOCK [ceil(n/128)][ceil(k/128)]; absent for NONE */
    ql_mat zero;   /* U8 [n][G] (ROW: G = 1) if `zero_points`, else absent */
    ql_mat order;  /* I32 [1][k] if `ordered`: the group of each input; `group` inputs in each, the rest in the last */
} ql_weight;

/* Writes the packed weight: it describes itself, depends on nothing but its input, and can be copied and stored as bytes.
 * `packed`: ql_plan_packed bytes, 256-byte aligned.  QL_INVALID for a code of 2^bits or more, a scale that `scale` cannot hold,
 * or groups of a wrong size; `packed` is no weight then.  These three functions wait for their result. */
QL_API ql_status ql_pack_weight(ql_ctx *ctx, const ql_plan *plan, const ql_weight *weight, void *packed);
/* The exact inverse, into matrices that the caller provides in `weight`. */
QL_API ql_status ql_unpack_weight(ql_ctx *ctx, const ql_plan *plan, const void *packed, const ql_weight *weight);
/* QL_FORMAT and one sentence if these bytes are damaged, QL_MISMATCH if they belong to another product. */
QL_API ql_status ql_check_weight(ql_ctx *ctx, const ql_plan *plan, const void *packed);

typedef struct ql_arguments {
    ql_mat x;           /* [m][k], m in 0 .. m_max; rows begin on multiples of 16 bytes (dense: of the element) */
    ql_mat x_scale;     /* F32: TENSOR [1][1], ROW [1][m], BLOCK [m][ceil(k/128)]; absent for NONE */
    ql_mat x_zero;      /* I32 [1][m] if `x_zero`, else absent */
    const void *weight; /* from ql_pack_weight, trusted: ql_check_weight is for bytes from elsewhere */
    ql_mat bias;        /* F32 [1][n] if `bias`, else absent */
    ql_mat y;           /* [m][n] */
    ql_mat y_scale;     /* y F8_E4M3: F32 [1][1], y = rounded(value / y_scale); else absent */
    ql_mat y_amax;      /* y F8_E4M3: F32 [1][1], gets max |value|, NaN if there is one; may be absent */
} ql_arguments;

/* Enqueues the product on `stream` (a cudaStream_t, never the default stream NULL; ignored on the CPU, where the product is
 * complete on return).  Allocates nothing, waits for nothing, can be captured in a graph.  `workspace`: ql_plan_workspace bytes,
 * 256-byte aligned, arbitrary contents, not shared with an execution that may run at the same time.  m = 0 writes nothing. */
QL_API ql_status ql_execute(const ql_plan *plan, const ql_arguments *arguments, void *workspace, void *stream);

#ifdef __cplusplus
}
#endif
#endif
