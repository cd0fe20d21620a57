/* The instructions that C++ has no word for, one per function: copies that go on behind the program's back and the barriers that
 * wait for them, matrix fragments and tensor cores of sm_80, arithmetic on pairs of 16-bit floats, bit tricks.
 *
 * tests/emulated_cuda/cuda/ptx.cuh has the same functions in C++ that does what the PTX ISA says, chosen by the include path;
 * tests/test_fragments.cu holds both to the layouts below.  Pointers into shared memory are ordinary ones: the conversion to a
 * shared address disappears where the compiler sees where they come from.  Lane l of a warp: row = l / 4, pair = l % 4.
 */
#ifndef CUDA_PTX_CUH
#define CUDA_PTX_CUH

#include <cuda_runtime.h>
#include <stdint.h>

#define PTX static __device__ __forceinline__

PTX uint32_t ptx_shared(const void *pointer) { return (uint32_t)__cvta_generic_to_shared(pointer); }

/* ---- copies from global to shared memory, sm_80 ---------------------------------------------------------------------------- */

/* Cache policies: read once, so others may stay in L2; and none in particular. */
PTX uint64_t ptx_evict_first() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0;" : "=l"(policy));
    return policy;
}

PTX uint64_t ptx_evict_normal() {
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_normal.b64 %0;" : "=l"(policy));
    return policy;
}

/* 16 bytes past L1, both ends 16-byte aligned: the first `bytes` of them from `from`, zeros after; with bytes = 0 nothing is read.
 * The target is undefined until ptx_wait_copies. */
PTX void ptx_copy(void *to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(ptx_shared(to)), "l"(from), "r"(bytes)
                 : "memory");
}
PTX void ptx_copy(void *to, const void *from, int bytes, uint64_t policy) {
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(ptx_shared(to)), "l"(from),
                 "r"(bytes), "l"(policy)
                 : "memory");
}

/* Closes a group of the copies that this thread has begun, and waits until at most `OPEN` of its youngest groups are under way.
 * Each thread waits for its own copies; a barrier then tells the others. */
PTX void ptx_commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int OPEN> PTX void ptx_wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(OPEN) : "memory"); }

/* 16 bytes to global memory in one instruction: stores of a vector the compiler takes apart where they depend on a branch. */
PTX void ptx_store(void *to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(a), "r"(b), "r"(c),
                 "r"(d)
                 : "memory");
}

/* ---- bulk copies and the barriers that count their bytes, sm_90 --------------------------------------------------------------- */

/* One thread makes a barrier of `arrivals` arrivals per phase, then ptx_fence_barriers and a block barrier before its first use. */
PTX void ptx_barrier_init(uint64_t *barrier, unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(ptx_shared(barrier)), "r"(arrivals) : "memory");
}
PTX void ptx_fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

PTX void ptx_barrier_arrive(uint64_t *barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(ptx_shared(barrier)) : "memory");
}
/* Arrives, and the phase also waits for `bytes` more bytes. */
PTX void ptx_barrier_expect(uint64_t *barrier, unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(ptx_shared(barrier)), "r"(bytes)
                 : "memory");
}
/* Returns when the phase of this parity is over: 0 for the first, 1 for the second; the phase before the first counts as over. */
PTX void ptx_barrier_wait(uint64_t *barrier, unsigned parity) {
    asm volatile("{\n"
                 ".reg .pred over;\n"
                 "again: mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
                 "@!over bra again;\n"
                 "}" ::"r"(ptx_shared(barrier)),
                 "r"(parity)
                 : "memory");
}

/* Begun by one thread: `bytes`, a multiple of 16, between 16-byte aligned ends; they count as they arrive. */
PTX void ptx_bulk_copy(void *to, const void *from, unsigned bytes, uint64_t *barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(ptx_shared(to)),
        "l"(from), "r"(bytes), "r"(ptx_shared(barrier))
        : "memory");
}
PTX void ptx_bulk_copy(void *to, const void *from, unsigned bytes, uint64_t *barrier, uint64_t policy) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
            "r"(ptx_shared(to)),
        "l"(from), "r"(bytes), "r"(ptx_shared(barrier)), "l"(policy)
        : "memory");
}

/* Own writes to shared memory become visible to later bulk copies and wgmma. */
PTX void ptx_fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* ---- barriers of a part of the block --------------------------------------------------------------------------------------------- */

/* `threads`, a multiple of 32, meet at barrier 1 .. 15; 0 belongs to __syncthreads.  Arriving does not wait. */
PTX void ptx_meet(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
PTX void ptx_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

/* ---- fragments and tensor cores -------------------------------------------------------------------------------------------------- */

/* Loads `N` matrices of 8 rows of 16 bytes.  Lane l gives the address of row l % 8 of matrix l / 8 (lanes beyond: any valid one);
 * lane l gets of each matrix bytes 4 pair .. 4 pair + 3 of row `row`; transposed, as 16-bit elements: column `row`, rows 2 pair and
 * 2 pair + 1. */
PTX void ptx_load_matrix(uint32_t (&to)[1], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                 : "=r"(to[0])
                 : "r"(ptx_shared(row))
                 : "memory");
}
PTX void ptx_load_matrix(uint32_t (&to)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(ptx_shared(row))
                 : "memory");
}
PTX void ptx_load_matrix(uint32_t (&to)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(ptx_shared(row))
                 : "memory");
}
PTX void ptx_load_transposed(uint32_t (&to)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(ptx_shared(row))
                 : "memory");
}
PTX void ptx_load_transposed(uint32_t (&to)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(ptx_shared(row))
                 : "memory");
}

/* c[16][8] += a[16][K] b[K][8], K = 16 of 16 bits or 32 of 8 bits; lower index in lower bits.  With E = 2 or 4 elements per word:
 *   a[i], i = 0 .. 3   row `row` + 8 (i % 2), columns E pair + (K / 2) (i / 2) and following
 *   b[i], i = 0, 1     rows E pair + (K / 2) i and following, column `row`
 *   c[i], i = 0 .. 3   row `row` + 8 (i / 2), column 2 pair + i % 2 */
#define PTX_MMA(name, type, shape_and_types, constraint)                                                               \
    PTX void name(type(&c)[4], const uint32_t(&a)[4], const uint32_t(&b)[2]) {                                         \
        asm volatile("mma.sync.aligned." shape_and_types " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "             \
                     "{%0, %1, %2, %3};"                                                                               \
                     : "+" constraint(c[0]), "+" constraint(c[1]), "+" constraint(c[2]), "+" constraint(c[3])          \
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                              \
    }
PTX_MMA(ptx_mma_f16, float, "m16n8k16.row.col.f32.f16.f16.f32", "f")
PTX_MMA(ptx_mma_bf16, float, "m16n8k16.row.col.f32.bf16.bf16.f32", "f")
PTX_MMA(ptx_mma_s8_s8, int32_t, "m16n8k32.row.col.s32.s8.s8.s32", "r") /* wraps around */
PTX_MMA(ptx_mma_u8_s8, int32_t, "m16n8k32.row.col.s32.u8.s8.s32", "r")
PTX_MMA(ptx_mma_s8_u8, int32_t, "m16n8k32.row.col.s32.s8.u8.s32", "r")
#undef PTX_MMA

/* ---- words ------------------------------------------------------------------------------------------------------------------- */

/* Bit i of the result is bit 4 a_i + 2 b_i + c_i of TABLE: evaluate the wanted expression on 0xf0, 0xcc, 0xaa. */
template <int TABLE> PTX uint32_t ptx_lop3(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(result) : "r"(a), "r"(b), "r"(c), "n"(TABLE));
    return result;
}

/* Byte i of the result is the byte of b:a (a low) that bits 4 i .. 4 i + 2 of the selector number; bit 4 i + 3 spreads its sign. */
PTX uint32_t ptx_permute(uint32_t a, uint32_t b, uint32_t selector) {
    uint32_t result;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
    return result;
}

/* 16 bytes of global memory that no one reads again: past L1, first out of L2. */
PTX uint4 ptx_load_once(const void *from) {
    uint4 to;
    asm volatile("ld.global.nc.L1::no_allocate.L2::evict_first.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to.x), "=r"(to.y), "=r"(to.z), "=r"(to.w)
                 : "l"(from));
    return to;
}

/* ---- pairs of 16-bit floats, the first in the low half; all round to nearest even --------------------------------------------- */

PTX uint32_t ptx_sub_f16x2(uint32_t a, uint32_t b) {
    uint32_t result;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(result) : "r"(a), "r"(b));
    return result;
}
PTX uint32_t ptx_fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t result;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}
/* sm_80 adds and multiplies bfloat16 by this alone. */
PTX uint32_t ptx_fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

PTX uint32_t ptx_pack_f16x2(float low, float high) {
    uint32_t result;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}
PTX uint32_t ptx_pack_bf16x2(float low, float high) {
    uint32_t result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}
PTX float ptx_f16_to_f32(uint16_t h) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(h));
    return result;
}

#endif
