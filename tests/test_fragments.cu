/* The instructions of cuda/ptx.cuh against the layout tables of the PTX ISA, typed here as formulas, and naive products in double.
 * On the processor this holds tests/emulated_cuda to the documents; built by nvcc it would hold the machine to both. */
extern "C" {
#include "tests/test.h"
}

#include <math.h>

#include "cuda/device.cuh"
#include "cuda/ptx.cuh"

enum { LANES = 32 };

/* One launch with data in and out; a stream is needed on a GPU. */
static cudaStream_t stream;

template <typename T> static T *on_device(const T *host, size_t count) {
    T *data = NULL;
    assert_int_equal(cudaMalloc(&data, count * sizeof *data), cudaSuccess);
    if (host) assert_int_equal(cudaMemcpy(data, host, count * sizeof *data, cudaMemcpyHostToDevice), cudaSuccess);
    return data;
}
template <typename T> static void take_back(T *device, T *host, size_t count) {
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_int_equal(cudaMemcpy(host, device, count * sizeof *host, cudaMemcpyDeviceToHost), cudaSuccess);
    cudaFree(device);
}
#define RUN(kernel, blocks, threads, shared, ...)                                                                      \
    assert_ok(([&]() -> ql_status {                                                                                    \
        LAUNCH_SHARED(stream, kernel, blocks, threads, shared, __VA_ARGS__);                                           \
        return QL_OK;                                                                                                  \
    }()))

/* ---- products ---------------------------------------------------------------------------------------------------------- */

enum kind { F16, BF16, S8_S8, U8_S8, S8_U8 };

struct warp_words {
    uint32_t a[LANES][4], b[LANES][2], c[LANES][4];
};

static __global__ void mma_kernel(int kind, warp_words *words) {
    unsigned lane = threadIdx.x;
    uint32_t a[4], b[2];
    float f[4];
    int32_t s[4];
    for (int i = 0; i < 4; i++) {
        a[i] = words->a[lane][i], s[i] = (int32_t)words->c[lane][i];
        memcpy(&f[i], &s[i], sizeof f[i]);
    }
    for (int i = 0; i < 2; i++) b[i] = words->b[lane][i];
    if (kind == F16) ptx_mma_f16(f, a, b);
    if (kind == BF16) ptx_mma_bf16(f, a, b);
    if (kind == S8_S8) ptx_mma_s8_s8(s, a, b);
    if (kind == U8_S8) ptx_mma_u8_s8(s, a, b);
    if (kind == S8_U8) ptx_mma_s8_u8(s, a, b);
    for (int i = 0; i < 4; i++) {
        if (kind == F16 || kind == BF16) memcpy(&s[i], &f[i], sizeof s[i]);
        words->c[lane][i] = (uint32_t)s[i];
    }
}

/* The tables of "Matrix Fragments for mma.m16n8k16" and ".m16n8k32": element i of a lane's fragment. */
typedef struct place {
    int row, column;
} place;
static place place_of_a(int lane, int i, int bits) {
    int group = lane >> 2, in_group = lane % 4;
    if (bits == 16) return {i / 2 % 2 ? group + 8 : group, in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0)};
    return {i < 4 || (i >= 8 && i < 12) ? group : group + 8, in_group * 4 + (i & 3) + (i >= 8 ? 16 : 0)};
}
static place place_of_b(int lane, int i, int bits) {
    int group = lane >> 2, in_group = lane % 4;
    if (bits == 16) return {in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0), group};
    return {in_group * 4 + (i & 3) + (i >= 4 ? 16 : 0), group};
}
static place place_of_c(int lane, int i) { return {i < 2 ? lane >> 2 : (lane >> 2) + 8, lane % 4 * 2 + (i & 1)}; }

static uint32_t random_word(uint32_t *state) {
    return *state = *state * 1664525u + 1013904223u, *state >> 7 | *state << 25;
}

/* Small numbers of each type, whose sums are exact whatever the order. */
static double value_of(int kind, int operand, uint32_t bits) {
    if (kind == F16) return (double)ql_f16_to_f32((uint16_t)bits);
    if (kind == BF16) return (double)ql_bf16_to_f32((uint16_t)bits);
    bool is_unsigned = (kind == U8_S8 && operand == 0) || (kind == S8_U8 && operand == 1);
    return is_unsigned ? (double)(uint8_t)bits : (double)(int8_t)bits;
}
static uint32_t random_element(int kind, uint32_t *state) {
    float small = (float)((int)(random_word(state) % 65) - 32) / 8;
    if (kind == F16) return ql_f32_to_f16(small);
    if (kind == BF16) return ql_f32_to_bf16(small);
    return random_word(state) & 0xff;
}

static void check_mma(int kind) {
    enum { ROWS = 16, COLUMNS = 8, MOST = 32 };
    int bits = kind == F16 || kind == BF16 ? 16 : 8, k = bits == 16 ? 16 : 32, per_word = 32 / bits;
    static double a[ROWS][MOST], b[MOST][COLUMNS], c[ROWS][COLUMNS];
    static warp_words words;
    uint32_t state = 17 + (uint32_t)kind;
    memset(&words, 0, sizeof words);
    for (int lane = 0; lane < LANES; lane++) {
        for (int i = 0; i < 4 * per_word; i++) {
            place at = place_of_a(lane, i, bits);
            uint32_t element = random_element(kind, &state);
            a[at.row][at.column] = value_of(kind, 0, element);
            words.a[lane][i / per_word] |= element << i % per_word * bits;
        }
        for (int i = 0; i < 2 * per_word; i++) {
            place at = place_of_b(lane, i, bits);
            uint32_t element = random_element(kind, &state);
            b[at.row][at.column] = value_of(kind, 1, element);
            words.b[lane][i / per_word] |= element << i % per_word * bits;
        }
        for (int i = 0; i < 4; i++) {
            place at = place_of_c(lane, i);
            float start = (float)((int)(random_word(&state) % 2001) - 1000);
            int32_t whole = (int32_t)start;
            c[at.row][at.column] = start;
            if (bits == 16) memcpy(&words.c[lane][i], &start, sizeof start);
            else memcpy(&words.c[lane][i], &whole, sizeof whole);
        }
    }
    warp_words *device = on_device(&words, 1);
    RUN(mma_kernel, 1, LANES, 0, kind, device);
    take_back(device, &words, 1);
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++) {
            place at = place_of_c(lane, i);
            double truth = c[at.row][at.column];
            for (int j = 0; j < k; j++) truth += a[at.row][j] * b[j][at.column];
            float real;
            int32_t whole;
            memcpy(&real, &words.c[lane][i], sizeof real);
            memcpy(&whole, &words.c[lane][i], sizeof whole);
            if (truth != (bits == 16 ? (double)real : (double)whole))
                fail_msg("kind %d, lane %d, element %d: %g, expected %g", kind, lane, i,
                         bits == 16 ? real : (double)whole, truth);
        }
}

static void mma_layouts(void **) {
    check_mma(F16);
    check_mma(BF16);
    check_mma(S8_S8);
    check_mma(U8_S8);
    check_mma(S8_U8);
}

/* ---- fragments from shared memory ----------------------------------------------------------------------------------------- */

/* Rows lie 48 bytes apart: no matrix is dense in memory. */
enum { MATRICES = 4, ROW = 24 };
static __global__ void load_kernel(uint32_t *to) {
    __shared__ __align__(16) uint16_t shared[MATRICES * 8][ROW];
    unsigned lane = threadIdx.x;
    for (int j = 0; j < 8; j++)
        shared[lane][j] = (uint16_t)(lane * 8 + (unsigned)j); /* matrix, row, column in 2, 3, 3 bits */
    __syncwarp();
    uint32_t one[1], two[2], four[4], turned[4], turned_two[2];
    ptx_load_matrix(one, shared[lane % 8]);
    ptx_load_matrix(two, shared[lane % 16]);
    ptx_load_matrix(four, shared[lane]);
    ptx_load_transposed(turned_two, shared[lane % 16]);
    ptx_load_transposed(turned, shared[lane]);
    uint32_t *mine = to + lane * 13;
    mine[0] = one[0];
    for (int i = 0; i < 2; i++) mine[1 + i] = two[i], mine[3 + i] = turned_two[i];
    for (int i = 0; i < 4; i++) mine[5 + i] = four[i], mine[9 + i] = turned[i];
}

/* "Thread i holds row i / 4, elements 2 (i % 4) and the next" of each matrix; with .trans, of its transpose. */
static void ldmatrix_layouts(void **) {
    static uint32_t words[LANES][13];
    uint32_t *device = on_device((uint32_t *)NULL, LANES * 13);
    RUN(load_kernel, 1, LANES, 0, device);
    take_back(device, words[0], LANES * 13);
    for (unsigned lane = 0; lane < LANES; lane++)
        for (unsigned i = 0; i < 13; i++) {
            bool turned = i == 3 || i == 4 || i >= 9;
            unsigned matrix = i == 0 ? 0 : i < 5 ? (i - 1) % 2 : (i - 5) % 4, row = lane / 4, pair = lane % 4 * 2;
            unsigned first = matrix * 64 + (turned ? pair * 8 + row : row * 8 + pair);
            unsigned second = matrix * 64 + (turned ? (pair + 1) * 8 + row : row * 8 + pair + 1);
            if (words[lane][i] != (first | second << 16))
                fail_msg("lane %u, word %u: %08x, expected %08x", lane, i, words[lane][i], first | second << 16);
        }
}

/* ---- copies ------------------------------------------------------------------------------------------------------------------- */

/* Three groups of copies; the first is read while two are under way, and the last has a tail of zeros. */
static __global__ void copy_kernel(const uint32_t *from, uint32_t *to) {
    DYNAMIC_SHARED(shared);
    unsigned lane = threadIdx.x;
    for (unsigned group = 0; group < 3; group++) {
        ptx_copy(shared + (group * LANES + lane) * 16, from + (group * LANES + lane) * 4, group == 2 ? 4 : 16);
        ptx_commit_copies();
    }
    ptx_wait_copies<2>();
    to[lane] = ((uint32_t *)shared)[lane * 4 + 3];
    ptx_wait_copies<0>();
    __syncthreads();
    unsigned other = (lane + 1) % LANES;
    for (unsigned i = 0; i < 4; i++) to[(lane + 1) * LANES + i] = ((uint32_t *)shared)[(2 * LANES + other) * 4 + i];
}

static void copies_in_groups(void **) {
    static uint32_t from[3 * LANES * 4], to[(LANES + 1) * LANES];
    for (uint32_t i = 0; i < 3 * LANES * 4; i++) from[i] = i + 1;
    uint32_t *device_from = on_device(from, 3 * LANES * 4), *device_to = on_device(to, (LANES + 1) * LANES);
    RUN(copy_kernel, 1, LANES, 3 * LANES * 16, device_from, device_to);
    take_back(device_to, to, (LANES + 1) * LANES);
    cudaFree(device_from);
    for (uint32_t lane = 0; lane < LANES; lane++) {
        assert_int_equal(to[lane], lane * 4 + 4);
        for (uint32_t i = 0; i < 4; i++)
            assert_int_equal(to[(lane + 1) * LANES + i], i ? 0 : (2 * LANES + (lane + 1) % LANES) * 4 + 1);
    }
}

#if !defined(__CUDACC__) /* what the emulation shows and a machine only might: the target before the wait */
static void early_kernel(const uint32_t *from, uint32_t *to) {
    DYNAMIC_SHARED(shared);
    ptx_copy(shared + threadIdx.x * 16, from, 16);
    to[threadIdx.x] = ((uint32_t *)shared)[threadIdx.x * 4];
    ptx_commit_copies();
    ptx_wait_copies<0>();
}
static void a_missing_wait_shows(void **) {
    alignas(16) uint32_t from[4] = {1, 2, 3, 4};
    uint32_t to[LANES];
    RUN(early_kernel, 1, LANES, LANES * 16, from, to);
    for (int lane = 0; lane < LANES; lane++) assert_int_equal(to[lane], 0xffffffffu);
}
#endif

/* A producer warp fills two stages by bulk copies, a consumer warp adds them up and gives them back: full and empty barriers go
 * through several phases. */
enum { STAGES = 2, ROUNDS = 7, WORDS = 64 };
static __global__ void bulk_kernel(const uint32_t *from, uint32_t *to) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    __shared__ uint64_t full[STAGES], empty[STAGES];
    __shared__ __align__(16) uint32_t stage[STAGES][WORDS];
    if (threadIdx.x == 0)
        for (int s = 0; s < STAGES; s++) ptx_barrier_init(&full[s], 1), ptx_barrier_init(&empty[s], 32);
    ptx_fence_barriers();
    __syncthreads();
    if (threadIdx.x == 0)
        for (int round = 0; round < ROUNDS; round++) {
            int s = round % STAGES, lap = round / STAGES;
            ptx_barrier_wait(&empty[s], (lap & 1) ^ 1);
            ptx_barrier_expect(&full[s], sizeof stage[s]);
            ptx_bulk_copy(stage[s], from + round * WORDS, sizeof stage[s], &full[s], ptx_evict_first());
        }
    if (threadIdx.x < 32) return;
    uint32_t sum = 0;
    for (int round = 0; round < ROUNDS; round++) {
        int s = round % STAGES, lap = round / STAGES;
        ptx_barrier_wait(&full[s], lap & 1);
        for (unsigned i = threadIdx.x - 32; i < WORDS; i += 32) sum += stage[s][i];
        ptx_barrier_arrive(&empty[s]);
    }
    to[threadIdx.x - 32] = sum;
#endif
}

static bool has_bulk_copies() {
    cudaDeviceProp properties;
    assert_int_equal(cudaGetDeviceProperties(&properties, 0), cudaSuccess);
    return properties.major >= 9;
}

static void bulk_copies_in_phases(void **) {
#ifdef __CUDACC__
    if (!has_bulk_copies()) {
        print_message("bulk copies: skipped, the GPU is older than sm_90\n");
        skip();
    }
#else
    (void)has_bulk_copies;
#endif
    static uint32_t from[ROUNDS * WORDS], to[LANES];
    for (uint32_t i = 0; i < ROUNDS * WORDS; i++) from[i] = i * i;
    uint32_t *device_from = on_device(from, ROUNDS * WORDS), *device_to = on_device(to, LANES);
    RUN(bulk_kernel, 1, 64, 0, device_from, device_to);
    take_back(device_to, to, LANES);
    cudaFree(device_from);
    for (uint32_t lane = 0; lane < LANES; lane++) {
        uint32_t truth = 0;
        for (uint32_t i = lane; i < ROUNDS * WORDS; i += 32) truth += i * i;
        assert_int_equal(to[lane], truth);
    }
}

/* Two pairs of warps hand a value over, each at its own barrier, while the other pair has not arrived yet. */
static __global__ void meet_kernel(uint32_t *to) {
    __shared__ uint32_t left[2][LANES];
    unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, pair = warp / 2;
    if (warp % 2 == 0) {
        left[pair][lane] = threadIdx.x * 3;
        ptx_arrive(1 + (int)pair, 64);
    } else {
        ptx_meet(1 + (int)pair, 64);
        to[pair * LANES + lane] = left[pair][31 - lane];
    }
}
static void named_barriers(void **) {
    static uint32_t to[2 * LANES];
    uint32_t *device = on_device(to, 2 * LANES);
    RUN(meet_kernel, 1, 128, 0, device);
    take_back(device, to, 2 * LANES);
    for (uint32_t i = 0; i < 2 * LANES; i++) assert_int_equal(to[i], (i / 32 * 64 + 31 - i % 32) * 3);
}

/* ---- words and pairs ------------------------------------------------------------------------------------------------------------ */

static __global__ void words_kernel(uint32_t *to) {
    uint32_t x = 0x89abcdefu;
    to[0] = ptx_lop3<(0xf0 & 0xcc) | 0xaa>(x, 0x000f000fu, 0x64006400u);
    to[1] = ptx_permute(0x83828180u, 0x07060504u, 0x7340u);
    to[2] = ptx_permute(0x83828180u, 0x07060504u, 0xcb21u);
    to[3] = ptx_sub_f16x2(0x64086400u, 0x64006407u);               /* 1024 - 1031, 1032 - 1024 */
    to[4] = ptx_fma_f16x2(0x3c023c02u, 0x3c023c02u, 0x0001bc00u);  /* (1 + u)^2 - 1, (1 + u)^2 + 2^-24, u = 2^-9 */
    to[5] = ptx_fma_bf16x2(0x43084300u, 0x3f803f80u, 0xc300c308u); /* 128 - 136, 136 - 128 */
    to[6] = ptx_pack_f16x2(1.0f, -2.0f);
    to[7] = ptx_pack_bf16x2(1.0f, 3.140625f);
    to[8] = (uint32_t)(ptx_f16_to_f32(0x0001) * 16777216.0f);
}
static void words_and_pairs(void **) {
    /* Word 4: u^2 is lost beside 1 where the product is rounded on its own, and not where it is not. */
    static const uint32_t truth[9] = {
        0x640b640fu, 0x07830480u, 0x00ff8281u, 0x4800c700u, 0x3c041c01u, 0x4100c100u, 0xc0003c00u, 0x40493f80u, 1};
    static uint32_t to[9];
    uint32_t *device = on_device(to, 9);
    RUN(words_kernel, 1, LANES, 0, device);
    take_back(device, to, 9);
    for (int i = 0; i < 9; i++)
        if (to[i] != truth[i]) fail_msg("word %d: %08x, expected %08x", i, to[i], truth[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mma_layouts),
        cmocka_unit_test(ldmatrix_layouts),
        cmocka_unit_test(copies_in_groups),
        cmocka_unit_test(bulk_copies_in_phases),
        cmocka_unit_test(named_barriers),
        cmocka_unit_test(words_and_pairs),
#if !defined(__CUDACC__)
        cmocka_unit_test(a_missing_wait_shows),
#endif
    };
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess) {
        print_message("fragments: skipped, no GPU\n");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
