/* FP8: E4M3 and E5M2 in every pairing, sums in FP32, scales, bias and FP8 output in the same kernel.
 *
 *   y[m][n] = sum_k x W * x_scale[m] * w_scale[n] + bias[n]                or scales per 128 inputs of x and 128 x 128 of W
 *
 * On every GPU since Ampere bytes are widened to FP16, exactly, and multiplied by m16n8k16 with sums in FP32.  E5M2 is the upper byte
 * of FP16.  The bits of E4M3, moved to those of FP16, are the value times 2^-8, subnormals and all; the sum is multiplied by 2^8 for
 * each E4M3 operand in the end, which is exact.  The four bytes of a word go to two instructions: K is permuted, for both operands
 * alike.  (mma.sync takes FP8 from sm_89 on; Hopper runs it through FP16 as well, only wgmma has the speed.)
 *
 * On Hopper wgmma multiplies bytes.  Its accumulators keep about 14 bits, so every 128 inputs their sum is added to FP32: always,
 * but for large products with QL_FAST.
 * Twins: host/cpu/product.c, cuda/product_any.cu. */
#include "cuda/bytes_sm90.cuh"

struct fp8_type {
    typedef float SUM;
    enum { SHIFT = 0, WIDTH = 1 };
    struct operand {
        uint32_t low[4], high[4]; /* of each word of ldmatrix, bytes 0, 1 and bytes 2, 3 as FP16 */
    };
    static __device__ __forceinline__ float unit(const ql_product *p) {
        return (p->x == QL_F8_E4M3 ? 256.0f : 1.0f) * (p->w == QL_F8_E4M3 ? 256.0f : 1.0f);
    }
    /* From bytes in the upper halves of two FP16.  The NaN of E4M3 would be 480 * 2^-8: the carry out of its magnitude makes it NaN. */
    static __device__ __forceinline__ uint32_t widen(uint32_t bytes, bool e4m3) {
        if (!e4m3) return bytes;
        uint32_t magnitude = (bytes >> 1) & 0x3f803f80u;
        return magnitude | ((magnitude + 0x00800080u) & 0x40004000u) | (bytes & 0x80008000u);
    }
    static __device__ __forceinline__ operand prepare(const uint32_t (&bytes)[4], bool e4m3) {
        operand result;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            result.low[i] = widen(ptx_permute(bytes[i], 0, 0x1404), e4m3);
            result.high[i] = widen(ptx_permute(bytes[i], 0, 0x3424), e4m3);
        }
        return result;
    }
    static __device__ __forceinline__ operand prepare_w(const uint32_t (&bytes)[4], const ql_product *p) {
        return prepare(bytes, p->w == QL_F8_E4M3);
    }
    static __device__ __forceinline__ operand prepare_x(const uint32_t (&bytes)[4], const ql_product *p) {
        return prepare(bytes, p->x == QL_F8_E4M3);
    }
    static __device__ __forceinline__ void multiply(float (&sum)[4], const operand &a, const operand &b, int half) {
        const uint32_t a_first[4] = {a.low[0], a.low[1], a.high[0], a.high[1]};
        const uint32_t b_first[2] = {b.low[2 * half], b.high[2 * half]};
        const uint32_t a_second[4] = {a.low[2], a.low[3], a.high[2], a.high[3]};
        const uint32_t b_second[2] = {b.low[2 * half + 1], b.high[2 * half + 1]};
        ptx_mma_f16(sum, a_first, b_first);
        ptx_mma_f16(sum, a_second, b_second);
    }
#if HOPPER
    template <wgmma_kind KIND, int MODE, typename TILE>
    static __device__ __forceinline__ void sum_kind(float (&sum)[TILE::TOKENS / 2], const byte_job *j, tile_place place,
                                                    const uint8_t *ring, uint64_t *barriers, float *scales, int group) {
        if constexpr (MODE == RUNNING) sum_running<KIND, TILE>(sum, place, ring, barriers, group);
        else sum_promoted<KIND, MODE, TILE>(sum, j, place, ring, barriers, scales, group);
    }
    template <int MODE, typename TILE>
    static __device__ __forceinline__ void sum_up(float (&sum)[TILE::TOKENS / 2], const byte_job *j, tile_place place,
                                                  const uint8_t *ring, uint64_t *barriers, float *scales, int group) {
        bool w_narrow = j->product.w == QL_F8_E5M2, x_narrow = j->product.x == QL_F8_E5M2;
        if (w_narrow && x_narrow) sum_kind<E5M2_E5M2, MODE, TILE>(sum, j, place, ring, barriers, scales, group);
        else if (w_narrow) sum_kind<E5M2_E4M3, MODE, TILE>(sum, j, place, ring, barriers, scales, group);
        else if (x_narrow) sum_kind<E4M3_E5M2, MODE, TILE>(sum, j, place, ring, barriers, scales, group);
        else sum_kind<E4M3_E4M3, MODE, TILE>(sum, j, place, ring, barriers, scales, group);
    }
#endif
};

/* ---- kernels ------------------------------------------------------------------------------------------------------------------- */

static bool is_fp8(ql_dtype dtype) { return dtype == QL_F8_E4M3 || dtype == QL_F8_E5M2; }

static ql_status takes_any(const ql_product *p, int arch) {
    if (!is_fp8(p->w) || !is_fp8(p->x))
        return ql_fail(QL_UNSUPPORTED, "fp8: x is %s and w %s, expected F8_E4M3 or F8_E5M2", ql_dtype_name(p->x),
                       ql_dtype_name(p->w));
    return arch >= 80 ? QL_OK
                      : ql_fail(QL_UNSUPPORTED, "fp8: needs compute capability 8.0, this GPU has %.1f", arch / 10.0);
}

static ql_status takes(const ql_product *p, int arch) {
    if (p->w_scale == QL_SCALE_BLOCK) return ql_fail(QL_UNSUPPORTED, "fp8: this kernel has no scales of blocks");
    return takes_any(p, arch);
}

static ql_status takes_blocks(const ql_product *p, int arch) {
    if (p->w_scale != QL_SCALE_BLOCK) return ql_fail(QL_UNSUPPORTED, "fp8: this kernel is for scales of blocks");
    return takes_any(p, arch);
}

static ql_status check_sm90(int arch) {
    return arch == 90 ? QL_OK : ql_fail(QL_UNSUPPORTED, "fp8: this kernel is of compute capability 9.0 alone");
}

static ql_status takes_sm90(const ql_product *p, int arch) {
    QL_TRY(check_sm90(arch));
    return takes(p, arch);
}

static ql_status takes_blocks_sm90(const ql_product *p, int arch) {
    QL_TRY(check_sm90(arch));
    return takes_blocks(p, arch);
}

static ql_status takes_fast_sm90(const ql_product *p, int arch) {
    if (p->accumulate != QL_FAST) return ql_fail(QL_UNSUPPORTED, "fp8: this kernel is for QL_FAST");
    return takes_sm90(p, arch);
}

/* Tiles as in cuda/int8.cu; 256 tokens leave no registers for sums beside the accumulators. */
typedef byte_family<fp8_type, WHOLE, 1, 1, 6> few;
typedef byte_family<fp8_type, WHOLE, 1, 4, 4> some;
typedef byte_family<fp8_type, WHOLE, 2, 8, 3> many;
typedef byte_family<fp8_type, BLOCKS, 1, 1, 6> few_blocks;
typedef byte_family<fp8_type, BLOCKS, 1, 4, 4> some_blocks;
typedef byte_family<fp8_type, BLOCKS, 2, 8, 3> many_blocks;
typedef hopper_family<fp8_type, PROMOTED, 16, 6, 2> few_sm90;
typedef hopper_family<fp8_type, PROMOTED, 64, 8, 1> some_sm90;
typedef hopper_family<fp8_type, PROMOTED, 128, 6, 1> many_sm90;
typedef hopper_family<fp8_type, SCALED, 16, 6, 2> few_blocks_sm90;
typedef hopper_family<fp8_type, SCALED, 64, 8, 1> some_blocks_sm90;
typedef hopper_family<fp8_type, SCALED, 128, 6, 1> many_blocks_sm90;
typedef hopper_family<fp8_type, RUNNING, 256, 4, 1> many_fast_sm90;

/* In the order in which they are preferred. */
const ql_kernel ql_fp8_kernels[QL_FP8_KERNELS] = {
    {"fp8_few.sm90", takes_sm90, 1, 16, few_sm90::workspace, few_sm90::run},
    {"fp8_some.sm90", takes_sm90, 17, 64, some_sm90::workspace, some_sm90::run},
    {"fp8_many_fast.sm90", takes_fast_sm90, 1, INT64_MAX, many_fast_sm90::workspace, many_fast_sm90::run},
    {"fp8_many.sm90", takes_sm90, 1, INT64_MAX, many_sm90::workspace, many_sm90::run},
    {"fp8_few_blocks.sm90", takes_blocks_sm90, 1, 16, few_blocks_sm90::workspace, few_blocks_sm90::run},
    {"fp8_some_blocks.sm90", takes_blocks_sm90, 17, 64, some_blocks_sm90::workspace, some_blocks_sm90::run},
    {"fp8_many_blocks.sm90", takes_blocks_sm90, 1, INT64_MAX, many_blocks_sm90::workspace, many_blocks_sm90::run},
    {"fp8_few.sm80", takes, 1, 16, few::workspace, few::run},
    {"fp8_some.sm80", takes, 17, 64, some::workspace, some::run},
    {"fp8_many.sm80", takes, 1, INT64_MAX, many::workspace, many::run},
    {"fp8_few_blocks.sm80", takes_blocks, 1, 16, few_blocks::workspace, few_blocks::run},
    {"fp8_some_blocks.sm80", takes_blocks, 17, 64, some_blocks::workspace, some_blocks::run},
    {"fp8_many_blocks.sm80", takes_blocks, 1, INT64_MAX, many_blocks::workspace, many_blocks::run},
};
