/* The instructions of cuda/wgmma.cuh against the layouts of the PTX ISA, typed here as formulas, and naive products in double.
 * On the processor this holds tests/emulated_cuda to the documents; built by nvcc for sm_90a it would hold the machine to both. */
extern "C" {
#include "tests/test.h"
}

#include <math.h>

#include "cuda/device.cuh"
#include "cuda/wgmma.cuh"

enum { GROUP = 128 };
static cudaStream_t stream;

template <typename T> static T *on_device(const T *host, size_t count) {
    T *data = NULL;
    assert_int_equal(cudaMalloc(&data, count * sizeof *data), cudaSuccess);
    assert_int_equal(cudaMemcpy(data, host, count * sizeof *data, cudaMemcpyHostToDevice), cudaSuccess);
    return data;
}
template <typename T> static void take_back(T *device, T *host, size_t count) {
    assert_int_equal(cudaStreamSynchronize(stream), cudaSuccess);
    assert_int_equal(cudaMemcpy(host, device, count * sizeof *host, cudaMemcpyDeviceToHost), cudaSuccess);
    cudaFree(device);
}
#define RUN(kernel, threads, shared, ...)                                                                              \
    assert_ok(([&]() -> ql_status {                                                                                    \
        LAUNCH_SHARED(stream, kernel, 1, threads, shared, __VA_ARGS__);                                                \
        return QL_OK;                                                                                                  \
    }()))

/* ---- products ------------------------------------------------------------------------------------------------------------------- */

enum { MOST_N = 256, TILE_A = 8 << 10, TILE_B = MOST_N * 128, TILES = TILE_A + TILE_B };

/* `tiles` are the bytes of shared memory; two products of 32 bytes of K each, the second one adds. */
template <wgmma_kind KIND, int N, typename T>
static __global__ void product_kernel(const unsigned char *tiles, T *sums) {
#if HOPPER
    DYNAMIC_SHARED(shared);
    for (int i = (int)threadIdx.x; i < TILES; i += GROUP) shared[i] = tiles[i];
    ptx_fence_async();
    __syncthreads();
    T d[N / 2];
    for (int i = 0; i < N / 2; i++) d[i] = (T)7; /* not added to */
    wgmma_fence();
    for (int half = 0; half < 2; half++) {
        bool columns = KIND == BF16_BF16_T || KIND == F16_F16_T;
        unsigned char *a = shared, *b = shared + TILE_A;
        uint64_t left = columns ? swizzled_columns(a + half * 2048, 4096) : swizzled_rows(a, 32 + half * 64);
        uint64_t right = columns ? swizzled_columns(b + half * 2048, 4096) : swizzled_rows(b, 32 + half * 64);
        wgmma<KIND>(d, left, right, half > 0);
    }
    wgmma_commit();
    wgmma_wait<0>(d);
    for (int i = 0; i < N / 2; i++) sums[i * GROUP + threadIdx.x] = d[i];
#endif
}

/* Where element (row, k) of a tile lies.  Rows of 128 bytes of K, or of 64 16-bit neighbours for one k with 32 k per tile; the chunk of 16
 * bytes changes places with the row. */
static int place_of(int row, int k, int size, bool columns) {
    int line = columns ? row / 64 * 32 + k : row, byte = columns ? row % 64 * 2 : k * size;
    return line * 128 + ((byte / 16) ^ (line % 8)) * 16 + byte % 16;
}

/* Small numbers, whose sums of 64 products are exact with 13 bits of fraction. */
static uint32_t element_of(wgmma_kind kind, bool left, int row, int k, double *value) {
    int small = (row * 7 + k * 3 + (left ? 1 : 5)) % 9 - 4;
    *value = small;
    switch (kind) {
    case S8_S8: return *value = (row * 37 + k * 11) % 256 - 128, (uint32_t)(uint8_t)(int8_t)*value;
    case S8_U8:
        return *value = left ? (row * 37 + k * 11) % 256 - 128 : (row * 5 + k * 29) % 256,
               (uint32_t)(uint8_t)(int)*value;
    case BF16_BF16:
    case BF16_BF16_T: return ql_f32_to_bf16((float)small);
    case F16_F16:
    case F16_F16_T: return ql_f32_to_f16((float)small);
    default:
        return (left ? kind == E5M2_E4M3 || kind == E5M2_E5M2 : kind == E4M3_E5M2 || kind == E5M2_E5M2)
                   ? ql_f32_to_e5m2((float)small)
                   : ql_f32_to_e4m3((float)small);
    }
}

template <wgmma_kind KIND, int N, typename T> static void check_product() {
    enum { MOST_K = 128 };
    static unsigned char tiles[TILES];
    static double a[64][MOST_K], b[MOST_N][MOST_K];
    static T sums[MOST_N / 2 * GROUP];
    const bool columns = KIND == BF16_BF16_T || KIND == F16_F16_T, halves = KIND >= BF16_BF16;
    const int size = halves ? 2 : 1, depth = columns ? 32 : 128 / size, step = 32 / size;
    memset(tiles, 0xff, sizeof tiles); /* NaN where nothing belongs */
    for (int k = 0; k < depth; k++) {
        for (int row = 0; row < 64; row++) {
            uint32_t bits = element_of(KIND, true, row, k, &a[row][k]);
            memcpy(tiles + place_of(row, k, size, columns), &bits, (size_t)size);
        }
        for (int row = 0; row < N; row++) {
            uint32_t bits = element_of(KIND, false, row, k, &b[row][k]);
            memcpy(tiles + TILE_A + place_of(row, k, size, columns), &bits, (size_t)size);
        }
    }
    unsigned char *device = on_device(tiles, TILES);
    T *result = on_device(sums, MOST_N / 2 * GROUP);
    auto kernel = product_kernel<KIND, N, T>;
    RUN(kernel, GROUP, TILES, device, result);
    take_back(result, sums, N / 2 * GROUP);
    cudaFree(device);
    for (int thread = 0; thread < GROUP; thread++)
        for (int i = 0; i < N / 2; i++) {
            int row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2 % 2),
                column = 8 * (i / 4) + 2 * (thread % 4) + i % 2;
            double sum = 0;
            for (int half = 0; half < 2; half++)
                for (int k = 0; k < step; k++) {
                    int at = columns ? half * step + k
                                     : step + half * 2 * step + k; /* bytes 32 .. 63 and 96 .. 127 of a row */
                    sum += a[row][at] * b[column][at];
                }
            if ((double)sums[i * GROUP + thread] != sum)
                fail_msg("kind %d, N %d, (%d, %d): %g, expected %g", (int)KIND, N, row, column,
                         (double)sums[i * GROUP + thread], sum);
        }
}

static void products_of_every_kind(void **) {
    check_product<E4M3_E4M3, 128, float>();
    check_product<E4M3_E5M2, 16, float>();
    check_product<E5M2_E4M3, 64, float>();
    check_product<E5M2_E5M2, 256, float>();
    check_product<S8_S8, 16, int32_t>();
    check_product<S8_S8, 256, int32_t>();
    check_product<S8_U8, 64, int32_t>();
    check_product<BF16_BF16, 128, float>();
    check_product<F16_F16, 16, float>();
    check_product<BF16_BF16_T, 128, float>();
    check_product<F16_F16_T, 64, float>();
    check_product<BF16_BF16_T, 256, float>();
}

/* ---- left operands in registers ------------------------------------------------------------------------------------------------------ */

/* Two products of 32 bytes of K: the words of thread t for product p are left[(2 t + p) * 4 ..]. */
template <wgmma_kind KIND, int N, typename T>
static __global__ void held_kernel(const unsigned char *tiles, const uint32_t *left, T *sums) {
#if HOPPER
    DYNAMIC_SHARED(shared);
    for (int i = (int)threadIdx.x; i < TILE_B; i += GROUP) shared[i] = tiles[i];
    ptx_fence_async();
    __syncthreads();
    uint32_t a[2][4];
    T d[N / 2];
    for (int i = 0; i < 8; i++) a[i / 4][i % 4] = left[(2 * threadIdx.x + i / 4) * 4 + i % 4];
    for (int i = 0; i < N / 2; i++) d[i] = 7; /* not added to */
    wgmma_fence();
    wgmma<KIND>(d, a[0], swizzled_rows(shared, 32), false);
    wgmma<KIND>(d, a[1], swizzled_rows(shared, 96), true);
    wgmma_commit();
    wgmma_wait<0>(d);
    for (int i = 0; i < N / 2; i++) sums[i * GROUP + threadIdx.x] = d[i];
#endif
}

template <wgmma_kind KIND, int N, typename T> static void check_held() {
    enum { SIZE = KIND >= BF16_BF16 ? 2 : 1, PER_WORD = 4 / SIZE, STEP = 32 / SIZE };
    static unsigned char tiles[TILE_B];
    static uint32_t left[GROUP * 8];
    static T sums[MOST_N / 2 * GROUP];
    double value, a[64][2 * STEP], b[N][4 * STEP];
    memset(tiles, 0xff, sizeof tiles);
    for (int row = 0; row < N; row++)
        for (int k = 0; k < 4 * STEP; k++) {
            uint32_t bits = element_of(KIND, false, row, k, &b[row][k]);
            memcpy(tiles + place_of(row, k, SIZE, false), &bits, SIZE);
        }
    /* "Register Fragments for wgmma.mma_async.m64nNk16" and of m64nNk32 with bytes, A. */
    memset(left, 0, sizeof left);
    for (int t = 0; t < GROUP; t++)
        for (int i = 0; i < 8 * PER_WORD; i++) {
            int word = i / PER_WORD, row = 16 * (t >> 5) + (t % 32 >> 2) + (word & 1 ? 8 : 0),
                k = word / 4 * STEP + (t % 4) * PER_WORD + i % PER_WORD + (word & 2 ? STEP / 2 : 0);
            uint32_t bits = element_of(KIND, true, row, k, &value);
            a[row][k] = value;
            left[t * 8 + word] |= bits << 8 * SIZE * (i % PER_WORD);
        }
    unsigned char *device = on_device(tiles, sizeof tiles);
    uint32_t *words = on_device(left, GROUP * 8);
    T *result = on_device(sums, MOST_N / 2 * GROUP);
    auto kernel = held_kernel<KIND, N, T>;
    RUN(kernel, GROUP, TILE_B, device, words, result);
    take_back(result, sums, N / 2 * GROUP);
    cudaFree(device), cudaFree(words);
    for (int thread = 0; thread < GROUP; thread++)
        for (int i = 0; i < N / 2; i++) {
            int row = 16 * (thread / 32) + thread % 32 / 4 + 8 * (i / 2 % 2),
                column = 8 * (i / 4) + 2 * (thread % 4) + i % 2;
            double sum = 0;
            for (int k = 0; k < 2 * STEP; k++) sum += a[row][k] * b[column][k / STEP * 2 * STEP + STEP + k % STEP];
            if (sums[i * GROUP + thread] != sum)
                fail_msg("kind %d, N %d, left in registers, (%d, %d): %g, expected %g", (int)KIND, N, row, column,
                         (double)sums[i * GROUP + thread], sum);
        }
}

static void products_with_left_in_registers(void **) {
    check_held<BF16_BF16, 64, float>();
    check_held<BF16_BF16, 128, float>();
    check_held<F16_F16, 64, float>();
    check_held<F16_F16, 128, float>();
    check_held<S8_S8, 64, int32_t>();
    check_held<S8_S8, 128, int32_t>();
}

/* ---- tensor maps ------------------------------------------------------------------------------------------------------------------ */

enum { BOX = 24, BOX_BYTES = BOX * 128 };

static __global__ void box_kernel(const __grid_constant__ CUtensorMap map, int byte, int row, unsigned char *to) {
#if HOPPER
    DYNAMIC_SHARED(shared);
    uint64_t *barrier = (uint64_t *)(shared + BOX_BYTES);
    if (threadIdx.x == 0) {
        ptx_barrier_init(barrier, 1);
        ptx_fence_barriers();
        ptx_barrier_expect(barrier, BOX_BYTES);
        tensor_load(shared, &map, byte, row, barrier);
    }
    __syncthreads();
    ptx_barrier_wait(barrier, 0);
    for (int i = (int)threadIdx.x; i < BOX_BYTES; i += GROUP) to[i] = shared[i];
#endif
}

/* Every chunk at its swizzled place; zeros beyond all four edges. */
static void boxes_with_swizzle_and_edges(void **) {
    enum { ROWS = 37, BYTES = 208, PITCH = 224 };
    static unsigned char matrix[ROWS * PITCH], box[BOX_BYTES];
    for (int i = 0; i < ROWS * PITCH; i++) matrix[i] = (unsigned char)(i % 251 + 1);
    unsigned char *device = on_device(matrix, sizeof matrix);
    const int bytes[] = {0, 128, -32, 192}, rows[] = {0, 24, -5, 40};
    for (int i = 0; i < 16; i++) {
        CUtensorMap map;
        unsigned char *to = on_device(box, sizeof box);
        int byte = bytes[i % 4], row = rows[i / 4];
        assert_ok(ql_cuda_tensor_map(&map, device, ROWS, BYTES, PITCH, BOX));
        RUN(box_kernel, GROUP, BOX_BYTES + 8, map, byte, row, to);
        take_back(to, box, sizeof box);
        for (int r = 0; r < BOX; r++)
            for (int c = 0; c < 128; c++) {
                bool inside = row + r >= 0 && row + r < ROWS && byte + c >= 0 && byte + c < BYTES;
                int expected = inside ? matrix[(row + r) * PITCH + byte + c] : 0;
                int got = box[r * 128 + ((c / 16) ^ (r % 8)) * 16 + c % 16];
                if (got != expected)
                    fail_msg("box (%d, %d), row %d, byte %d: %d, expected %d", byte, row, r, c, got, expected);
            }
    }
    cudaFree(device);
}

static void maps_that_cannot_be(void **) {
    static CUtensorMap map;
    static unsigned char matrix[4096];
    unsigned char *device = on_device(matrix, sizeof matrix);
    assert_refused(ql_cuda_tensor_map(&map, device + 8, 4, 64, 64, 4), QL_INTERNAL, "cuTensorMapEncodeTiled: error 1");
    assert_refused(ql_cuda_tensor_map(&map, device, 4, 64, 72, 4), QL_INTERNAL, "72 from row to row");
    assert_refused(ql_cuda_tensor_map(&map, device, 4, 64, 64, 257), QL_INTERNAL, "cuTensorMapEncodeTiled");
    cudaFree(device);
}

/* ---- what the emulation is for ------------------------------------------------------------------------------------------------------ */

#ifndef __CUDACC__
/* A sum that is read before its wait is not the sum; nor is that of a tile that was overwritten before it. */
static __global__ void hasty_kernel(bool early, bool overwrite, int32_t *sums) {
    DYNAMIC_SHARED(shared);
    for (int i = (int)threadIdx.x; i < TILES; i += GROUP) shared[i] = 1;
    __syncthreads();
    int32_t d[8] = {}, seen;
    wgmma_fence();
    wgmma<S8_S8>(d, swizzled_rows(shared, 0), swizzled_rows(shared + TILE_A, 0), false);
    wgmma_commit();
    seen = d[0];
    if (overwrite) {
        for (int i = (int)threadIdx.x; i < TILES; i += GROUP) shared[i] = 2;
        __syncthreads();
    }
    wgmma_wait<0>(d);
    sums[threadIdx.x] = early ? seen : d[0];
}

static void a_missing_wait_shows(void **) {
    for (int i = 0; i < 3; i++) {
        static int32_t sums[GROUP];
        int32_t *device = on_device(sums, GROUP);
        RUN(hasty_kernel, GROUP, TILES, i == 1, i == 2, device);
        take_back(device, sums, GROUP);
        assert_int_equal(sums[77] == 32, i == 0);
    }
}
#endif

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_of_every_kind),
        cmocka_unit_test(products_with_left_in_registers),
        cmocka_unit_test(boxes_with_swizzle_and_edges),
        cmocka_unit_test(maps_that_cannot_be),
#ifndef __CUDACC__
        cmocka_unit_test(a_missing_wait_shows),
#endif
    };
    cudaDeviceProp properties = {};
    if (cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking) != cudaSuccess ||
        cudaGetDeviceProperties(&properties, 0) != cudaSuccess) {
        print_message("hopper: skipped, no GPU\n");
        return 77;
    }
#ifdef __CUDACC__
    if (properties.major != 9) {
        print_message("hopper: skipped, compute capability %d.%d has no wgmma\n", properties.major, properties.minor);
        return 77;
    }
#endif
    return cmocka_run_group_tests(tests, NULL, NULL);
}
