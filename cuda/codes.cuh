/* From packed codes (host/tiles.h) to fragments of the tensor cores: q - zero, exactly, as FP16, BF16 or 8-bit integers.
 *
 * A number format here is a struct of what the product kernel (codes_kernel.cuh) needs of it:
 *   part, sum        what the tensor core adds up; what the partial sums of groups are added up in, after their scale
 *   X_BYTES          of one input: one product takes 32 bytes of a row of x
 *   KIND             of wgmma
 *   offset(zero)     a word that stands for a zero point in fragment()
 *   fragment(...)    A operand of product `step` of a tile: rows lane / 4 and + 8 have their own zero points
 */
#ifndef CUDA_CODES_CUH
#define CUDA_CODES_CUH

#include "cuda/device.cuh"
#include "cuda/operand.cuh"
#include "host/tiles.h"

/* Pair `pair` of a unit, each code in the low bits of a half of MAGIC, a power of two whose last place is 1: MAGIC + code. */
template <int BITS, uint32_t MAGIC> static __device__ __forceinline__ uint32_t raised(const uint32_t *unit, int pair) {
    constexpr uint32_t ONES = (1u << BITS) - 1, MASK = ONES | ONES << 16;
    constexpr int PER_WORD = 16 / BITS;
    return ptx_lop3<(0xf0 & 0xcc) | 0xaa>(unit[pair / PER_WORD] >> pair % PER_WORD * BITS, MASK, MAGIC);
}

/* 3 bits: two in the first two words, the third in the last. */
template <uint32_t MAGIC> static __device__ __forceinline__ uint32_t raised_3(const uint32_t *unit, int pair) {
    uint32_t high = pair < 2 ? unit[2] << (2 - pair) : unit[2] >> (pair - 2);
    return ptx_lop3<0xf0 | (0xcc & 0xaa)>(raised<2, MAGIC>(unit, pair), high, 0x00040004u);
}

template <int BITS_> struct f16_codes {
    typedef float part, sum;
    enum { BITS = BITS_, X_BYTES = 2 };
    static constexpr wgmma_kind KIND = F16_F16;
    static constexpr uint32_t MAGIC = 0x64006400u, ONE = 0x3c003c00u; /* 1024, 1 */

    static __device__ __forceinline__ uint32_t offset(int zero) {
        return ptx_pack_f16x2(-1024.0f - (float)zero, -1024.0f - (float)zero);
    }
    static __device__ __forceinline__ void fragment(const uint32_t *unit, int step, const uint32_t *offset,
                                                    uint32_t (&a)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint32_t code = BITS == 3 ? raised_3<MAGIC>(unit, 4 * step + i) : raised<BITS, MAGIC>(unit, 4 * step + i);
            a[i] = ptx_fma_f16x2(code, ONE, offset[i % 2]);
        }
    }
    static __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        ptx_mma_f16(c, a, b);
    }
};

template <int BITS_> struct bf16_codes {
    typedef float part, sum;
    enum { BITS = BITS_, X_BYTES = 2 };
    static constexpr wgmma_kind KIND = BF16_BF16;
    static constexpr uint32_t MAGIC = 0x43004300u, ONE = 0x3f803f80u; /* 128, 1 */

    static __device__ __forceinline__ uint32_t offset(int zero) {
        float base = BITS == 8 ? 0.0f : 128.0f;
        return ptx_pack_bf16x2(-base - (float)zero, -base - (float)zero);
    }
    /* Bit 7 does not fit behind 128; put there, it makes 256 of it.  (128 or 256) - 256 + (128 + 7 bits) - zero: every sum is an
     * integer of magnitude up to 255, which BF16 holds. */
    static __device__ __forceinline__ uint32_t value_8(const uint32_t *unit, int pair, uint32_t offset) {
        uint32_t codes = unit[pair / 2] >> pair % 2 * 8;
        uint32_t low = ptx_lop3<(0xf0 & 0xcc) | 0xaa>(codes, 0x007f007fu, MAGIC);
        uint32_t high = ptx_lop3<(0xf0 & 0xcc) | 0xaa>(codes, 0x00800080u, MAGIC);
        return ptx_fma_bf16x2(ptx_fma_bf16x2(high, ONE, 0xc380c380u), ONE, ptx_fma_bf16x2(low, ONE, offset));
    }
    static __device__ __forceinline__ void fragment(const uint32_t *unit, int step, const uint32_t *offset,
                                                    uint32_t (&a)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int pair = 4 * step + i;
            if (BITS == 8) a[i] = value_8(unit, pair, offset[i % 2]);
            else {
                uint32_t code = BITS == 3 ? raised_3<MAGIC>(unit, pair) : raised<BITS, MAGIC>(unit, pair);
                a[i] = ptx_fma_bf16x2(code, ONE, offset[i % 2]);
            }
        }
    }
    static __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        ptx_mma_bf16(c, a, b);
    }
};

/* 4 bits times 8-bit integers.  SUM is int32_t where one scale per output follows the exact sum, float for groups.  Within each 16
 * inputs of x, byte 4 t + b is input 2 t + {0, 8, 1, 9}[b], as the bytes of a word of codes are. */
template <typename SUM> struct s8_codes {
    typedef int32_t part;
    typedef SUM sum;
    enum { BITS = 4, X_BYTES = 1 };
    static constexpr wgmma_kind KIND = S8_S8;
    static constexpr uint32_t TOPS = 0x80808080u;

    static __device__ __forceinline__ uint32_t offset(int zero) { return (uint32_t)zero * 0x01010101u; }

    /* With its top bit set a byte is above every zero point, so that no borrow leaves it; the top bit of the result is the sign
     * upside down. */
    static __device__ __forceinline__ uint32_t values(uint32_t codes, uint32_t offset) {
        return (ptx_lop3<(0xf0 & 0xcc) | 0xaa>(codes, 0x0f0f0f0fu, TOPS) - offset) ^ TOPS;
    }
    static __device__ __forceinline__ void fragment(const uint32_t *unit, int step, const uint32_t *offset,
                                                    uint32_t (&a)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = values(unit[2 * step + i / 2] >> i % 2 * 4, offset[i % 2]);
    }
    static __device__ __forceinline__ void multiply(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
        ptx_mma_s8_s8(c, a, b);
    }
};

#endif
