/* cuda/ptx.cuh in C++: the same functions, each doing what the PTX ISA says.  The include path chooses.
 *
 * Stricter than the machine where that finds mistakes: a copy poisons its target when it begins and moves its bytes only in the
 * wait that it needs, so that a read too early, or a stage refilled under its readers, gives NaN; addresses must be aligned;
 * barriers must have been made.  Tensor cores sum exactly and cut off toward zero, as sm_80 and sm_90 were seen to do, so that
 * a bound that holds here does not live on rounding to nearest. */
#ifndef CUDA_PTX_CUH
#define CUDA_PTX_CUH

#include "tests/emulated_cuda/cuda_runtime.h"

#include "host/num.h"

#define PTX static inline

PTX uint32_t ptx_shared(const void *pointer) { return (uint32_t)((const unsigned char *)pointer - emulated_shared); }

/* ---- copies from global to shared memory, sm_80 ---------------------------------------------------------------------------- */

PTX uint64_t ptx_evict_first() { return 0; }
PTX uint64_t ptx_evict_normal() { return 0; }

PTX void ptx_copy(void *to, const void *from, int bytes, uint64_t = 0) { emulated_copy(to, from, bytes); }
PTX void ptx_commit_copies() { emulated_commit_copies(); }
template <int OPEN> PTX void ptx_wait_copies() { emulated_wait_copies(OPEN); }

PTX void ptx_store(void *to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    if ((uintptr_t)to % 16) emulated_stop("a store of 16 bytes that is not aligned to them");
    const uint32_t words[] = {a, b, c, d};
    memcpy(to, words, sizeof words);
}

/* ---- bulk copies and the barriers that count their bytes, sm_90 --------------------------------------------------------------- */

PTX void ptx_barrier_init(uint64_t *barrier, unsigned arrivals) { emulated_barrier_init(barrier, arrivals); }
PTX void ptx_fence_barriers() {}
PTX void ptx_barrier_arrive(uint64_t *barrier) { emulated_barrier_arrive(barrier, 0); }
PTX void ptx_barrier_expect(uint64_t *barrier, unsigned bytes) { emulated_barrier_arrive(barrier, bytes); }
PTX void ptx_barrier_wait(uint64_t *barrier, unsigned parity) { emulated_barrier_wait(barrier, parity); }

PTX void ptx_bulk_copy(void *to, const void *from, unsigned bytes, uint64_t *barrier, uint64_t = 0) {
    if (((uintptr_t)to | (uintptr_t)from | bytes) % 16) emulated_stop("a bulk copy that is not aligned to 16 bytes");
    memset(to, EMULATED_POISON, bytes);
    emulated_later(barrier, bytes, [=] { memcpy(to, from, bytes); });
}
PTX void ptx_fence_async() {}

/* ---- barriers of a part of the block --------------------------------------------------------------------------------------------- */

PTX void ptx_meet(int id, int threads) { emulated_meet(id, threads, true); }
PTX void ptx_arrive(int id, int threads) { emulated_meet(id, threads, false); }

/* ---- fragments and tensor cores -------------------------------------------------------------------------------------------------- */

template <int N> static void emulated_load_matrix(uint32_t (&to)[N], const void *row, bool transposed) {
    unsigned lane = threadIdx.x % 32;
    if ((uintptr_t)row % 16) emulated_stop("ldmatrix of a row that is not aligned to 16 bytes");
    const emulated_slot *slots = emulated_gather(&row, sizeof row);
    for (int i = 0; i < N; i++) {
        uint16_t pair[2];
        for (unsigned e = 0; e < 2; e++) {
            unsigned r = transposed ? lane % 4 * 2 + e : lane / 4, c = transposed ? lane / 4 : lane % 4 * 2 + e;
            const uint16_t *from;
            memcpy(&from, &slots[i * 8 + (int)r], sizeof from);
            pair[e] = from[c];
        }
        to[i] = pair[0] | (uint32_t)pair[1] << 16;
    }
    emulated_release();
}
template <int N> PTX void ptx_load_matrix(uint32_t (&to)[N], const void *row) { emulated_load_matrix(to, row, false); }
template <int N> PTX void ptx_load_transposed(uint32_t (&to)[N], const void *row) {
    emulated_load_matrix(to, row, true);
}

/* What a lane brings to a product: its words of a and b, already as numbers. */
template <typename T, int E> struct emulated_operands { T a[4][E], b[2][E]; };

/* `E` elements per word: 2 of 16 bits, 4 of 8 bits.  `add` adds the exact sum of the products to one element of c. */
template <typename T, int E, typename Sum, typename C>
static void emulated_mma(C (&c)[4], const emulated_operands<T, E> &mine, void (*add)(C *, Sum)) {
    static_assert(sizeof mine <= sizeof(emulated_slot), "a slot holds the operands");
    unsigned lane = threadIdx.x % 32;
    const emulated_slot *slots = emulated_gather(&mine, sizeof mine);
    for (unsigned i = 0; i < 4; i++) {
        unsigned row = lane / 4, column = lane % 4 * 2 + i % 2;
        Sum sum = 0;
        for (unsigned k = 0; k < 8 * E; k++) {
            unsigned half = k / (4 * E), pair = k % (4 * E) / E;
            const auto *left = (const emulated_operands<T, E> *)&slots[row * 4 + pair];
            const auto *right = (const emulated_operands<T, E> *)&slots[column * 4 + pair];
            sum += (Sum)left->a[i / 2 + 2 * half][k % E] * (Sum)right->b[half][k % E];
        }
        add(&c[i], sum);
    }
    emulated_release();
}

static inline void emulated_add_cut(float *c, double sum) {
    double exact = (double)*c + sum;
    float nearest = (float)exact;
    *c = fabs((double)nearest) > fabs(exact) && !isinf(exact) ? nextafterf(nearest, 0.0f) : nearest;
}
static inline void emulated_add_wrapped(int32_t *c, int64_t sum) { *c = (int32_t)(uint32_t)((int64_t)*c + sum); }

template <float (*VALUE)(uint16_t)>
static void emulated_mma_16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulated_operands<float, 2> mine;
    for (int i = 0; i < 4; i++)
        for (int e = 0; e < 2; e++) mine.a[i][e] = VALUE((uint16_t)(a[i] >> 16 * e));
    for (int i = 0; i < 2; i++)
        for (int e = 0; e < 2; e++) mine.b[i][e] = VALUE((uint16_t)(b[i] >> 16 * e));
    emulated_mma<float, 2, double>(c, mine, emulated_add_cut);
}
template <typename A, typename B>
static void emulated_mma_8(int32_t (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    emulated_operands<int16_t, 4> mine;
    for (int i = 0; i < 4; i++)
        for (int e = 0; e < 4; e++) mine.a[i][e] = (A)(a[i] >> 8 * e);
    for (int i = 0; i < 2; i++)
        for (int e = 0; e < 4; e++) mine.b[i][e] = (B)(b[i] >> 8 * e);
    emulated_mma<int16_t, 4, int64_t>(c, mine, emulated_add_wrapped);
}

#define PTX_MMA(name, type, body)                                                                                      \
    PTX void name(type(&c)[4], const uint32_t(&a)[4], const uint32_t(&b)[2]) { body(c, a, b); }
PTX_MMA(ptx_mma_f16, float, emulated_mma_16<ql_f16_to_f32>)
PTX_MMA(ptx_mma_bf16, float, emulated_mma_16<ql_bf16_to_f32>)
PTX_MMA(ptx_mma_s8_s8, int32_t, (emulated_mma_8<int8_t, int8_t>))
PTX_MMA(ptx_mma_u8_s8, int32_t, (emulated_mma_8<uint8_t, int8_t>))
PTX_MMA(ptx_mma_s8_u8, int32_t, (emulated_mma_8<int8_t, uint8_t>))
#undef PTX_MMA

/* ---- words ------------------------------------------------------------------------------------------------------------------- */

template <int TABLE> PTX uint32_t ptx_lop3(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t result = 0;
    for (int i = 0; i < 32; i++) {
        unsigned at = (a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1);
        result |= ((unsigned)TABLE >> at & 1) << i;
    }
    return result;
}

PTX uint32_t ptx_permute(uint32_t a, uint32_t b, uint32_t selector) {
    uint64_t bytes = (uint64_t)b << 32 | a;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned which = selector >> 4 * i & 15;
        uint8_t byte = (uint8_t)(bytes >> 8 * (which & 7));
        if (which & 8) byte = byte & 0x80 ? 0xff : 0;
        result |= (uint32_t)byte << 8 * i;
    }
    return result;
}

PTX uint4 ptx_load_once(const void *from) {
    uint4 to;
    if ((uintptr_t)from % 16) emulated_stop("loads 16 bytes that are not aligned");
    memcpy(&to, from, sizeof to);
    return to;
}

/* ---- pairs of 16-bit floats, the first in the low half; all round to nearest even --------------------------------------------- */

/* a b + c rounded to odd in double: 53 bits are enough beyond the 11 or 8 of the results for one last rounding to be right. */
static inline double emulated_fma_odd(double a, double b, double c) {
    double product = a * b, sum = product + c; /* the product of two 16-bit floats is exact */
    double part = sum - product, error = (product - (sum - part)) + (c - part);
    uint64_t bits;
    memcpy(&bits, &sum, sizeof bits);
    if (error == 0 || !isfinite(sum) || (bits & 1)) return sum;
    bits += (error > 0) == (sum > 0) ? 1 : -1;
    memcpy(&sum, &bits, sizeof sum);
    return sum;
}
static inline uint16_t emulated_fma_f16(uint16_t a, uint16_t b, uint16_t c) {
    return ql_f32_to_f16(ql_f64_to_odd(emulated_fma_odd(ql_f16_to_f32(a), ql_f16_to_f32(b), ql_f16_to_f32(c))));
}
static inline uint16_t emulated_fma_bf16(uint16_t a, uint16_t b, uint16_t c) {
    return ql_f32_to_bf16(ql_f64_to_odd(emulated_fma_odd(ql_bf16_to_f32(a), ql_bf16_to_f32(b), ql_bf16_to_f32(c))));
}
template <uint16_t (*FMA)(uint16_t, uint16_t, uint16_t)>
static uint32_t emulated_pairwise(uint32_t a, uint32_t b, uint32_t c) {
    return FMA((uint16_t)a, (uint16_t)b, (uint16_t)c) |
           (uint32_t)FMA((uint16_t)(a >> 16), (uint16_t)(b >> 16), (uint16_t)(c >> 16)) << 16;
}

PTX uint32_t ptx_fma_f16x2(uint32_t a, uint32_t b, uint32_t c) { return emulated_pairwise<emulated_fma_f16>(a, b, c); }
PTX uint32_t ptx_fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
    return emulated_pairwise<emulated_fma_bf16>(a, b, c);
}
PTX uint32_t ptx_sub_f16x2(uint32_t a, uint32_t b) { return ptx_fma_f16x2(b, 0xbc00bc00u, a); }

PTX uint32_t ptx_pack_f16x2(float low, float high) { return ql_f32_to_f16(low) | (uint32_t)ql_f32_to_f16(high) << 16; }
PTX uint32_t ptx_pack_bf16x2(float low, float high) {
    return ql_f32_to_bf16(low) | (uint32_t)ql_f32_to_bf16(high) << 16;
}
PTX float ptx_f16_to_f32(uint16_t h) { return ql_f16_to_f32(h); }

#endif
