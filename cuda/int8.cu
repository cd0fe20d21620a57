/* W8A8: I8 weights, I8 or U8 activations, exact sums in 32 bits, scales and bias in the same kernel.
 *
 *   y[m][n] = (sum_k x W - zero[m] sum_k W) * x_scale[m] * w_scale[n] + bias[n]            or the sum itself, as I32
 *
 * Sums are exact modulo 2^32, so every kernel and every split gives the same bits.  The sums of the rows of W, for zero points, come
 * with the packed weight.  mma.sync sees U8 as I8 by subtracting 128 (an xor of four bytes), which is a change of the zero point;
 * wgmma multiplies U8 as it is.
 * cuBLASLt writes I32 or I8: its users pay another pass of eight bytes per value for the scales.
 * Twins: host/cpu/product.c, cuda/product_any.cu. */
#include "cuda/bytes_sm90.cuh"

struct int8_type {
    typedef int32_t SUM;
    enum { SHIFT = 128, WIDTH = 1 };
    struct operand {
        uint32_t word[4];
    };
    static __device__ __forceinline__ int32_t unit(const ql_product *) { return 1; }
    static __device__ __forceinline__ operand prepare_w(const uint32_t (&bytes)[4], const ql_product *) {
        return {{bytes[0], bytes[1], bytes[2], bytes[3]}};
    }
    static __device__ __forceinline__ operand prepare_x(const uint32_t (&bytes)[4], const ql_product *p) {
        uint32_t flip = p->x == QL_U8 ? 0x80808080u : 0;
        return {{bytes[0] ^ flip, bytes[1] ^ flip, bytes[2] ^ flip, bytes[3] ^ flip}};
    }
    static __device__ __forceinline__ void multiply(int32_t (&sum)[4], const operand &a, const operand &b, int half) {
        const uint32_t words[2] = {b.word[2 * half], b.word[2 * half + 1]};
        ptx_mma_s8_s8(sum, a.word, words);
    }
#if HOPPER
    template <int, typename TILE>
    static __device__ __forceinline__ void sum_up(int32_t (&sum)[TILE::TOKENS / 2], const byte_job *j, tile_place place,
                                                  const uint8_t *ring, uint64_t *barriers, float *, int group) {
        if (j->product.x == QL_U8) sum_running<S8_U8, TILE>(sum, place, ring, barriers, group);
        else sum_running<S8_S8, TILE>(sum, place, ring, barriers, group);
    }
#endif
};

static ql_status takes(const ql_product *p, int arch) {
    if (p->w != QL_I8) return ql_fail(QL_UNSUPPORTED, "int8: w is %s, expected I8", ql_dtype_name(p->w));
    return arch >= 80 ? QL_OK
                      : ql_fail(QL_UNSUPPORTED, "int8: needs compute capability 8.0, this GPU has %.1f", arch / 10.0);
}

static ql_status takes_sm90(const ql_product *p, int arch) {
    if (arch != 90) return ql_fail(QL_UNSUPPORTED, "int8: this kernel is of compute capability 9.0 alone");
    return takes(p, arch);
}

/* On every GPU 64 outputs x 16 tokens, so that weights stream through many small blocks, 64 x 64, and 128 x 128; on Hopper 128 outputs
 * x 16, 64 and 256. */
typedef byte_family<int8_type, WHOLE, 1, 1, 6> few;
typedef byte_family<int8_type, WHOLE, 1, 4, 4> some;
typedef byte_family<int8_type, WHOLE, 2, 8, 3> many;
typedef hopper_family<int8_type, RUNNING, 16, 6, 2> few_sm90;
typedef hopper_family<int8_type, RUNNING, 64, 8, 1> some_sm90;
typedef hopper_family<int8_type, RUNNING, 256, 4, 1> many_sm90;

/* In the order in which they are preferred. */
const ql_kernel ql_int8_kernels[QL_INT8_KERNELS] = {
    {"int8_few.sm90", takes_sm90, 1, 16, few_sm90::workspace, few_sm90::run},
    {"int8_some.sm90", takes_sm90, 17, 64, some_sm90::workspace, some_sm90::run},
    {"int8_many.sm90", takes_sm90, 1, INT64_MAX, many_sm90::workspace, many_sm90::run},
    {"int8_few.sm80", takes, 1, 16, few::workspace, few::run},
    {"int8_some.sm80", takes, 17, 64, some::workspace, some::run},
    {"int8_many.sm80", takes, 1, INT64_MAX, many::workspace, many::run},
};
