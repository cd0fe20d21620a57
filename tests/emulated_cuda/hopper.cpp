/* Products of a warpgroup and tensor maps, from their definitions in the PTX ISA: matrix descriptors, canonical layouts, swizzles. */
#include "cuda/wgmma.cuh"

#include <deque>
#include <vector>

#include "host/num.h"

/* ---- descriptors -------------------------------------------------------------------------------------------------------------- */

struct operand_layout {
    uint32_t start, leading, stride; /* bytes */
    uint32_t width;                  /* of the swizzle; 16: none */
    bool transposed;                 /* neighbours along M or N, not along K */
};

static operand_layout decode(uint64_t descriptor, bool transposed) {
    static const uint32_t widths[4] = {16, 128, 64, 32};
    operand_layout layout = {(uint32_t)(descriptor & 0x3fff) << 4, (uint32_t)(descriptor >> 16 & 0x3fff) << 4,
                             (uint32_t)(descriptor >> 32 & 0x3fff) << 4, widths[descriptor >> 62], transposed};
    if (descriptor >> 49 & 7) emulated_stop("a descriptor with a base offset");
    if (layout.start % (8 * layout.width) >= layout.width)
        emulated_stop("a tile that does not begin where the pattern of its swizzle does");
    return layout;
}

/* The place in shared memory of element (row, k) of `size` bytes.  Eight rows, or eight k, of `width` bytes are what a swizzle permutes. */
static const unsigned char *element(const operand_layout &l, unsigned row, unsigned k, unsigned size) {
    unsigned along = (l.transposed ? row : k) * size, across = l.transposed ? k : row;
    unsigned chunk = along / l.width, eight = across / 8; /* tiles of the pattern along both directions */
    uint32_t address = l.start + across % 8 * l.width + along % l.width;
    if (l.width == 16)
        address += l.transposed ? chunk * l.stride + eight * l.leading : chunk * l.leading + eight * l.stride;
    else address += chunk * l.leading + eight * l.stride;
    if (!l.transposed && l.width > 16 && chunk) emulated_stop("a row that leaves its swizzle");
    address ^= (address >> 7 & (l.width / 16 - 1)) << 4;
    return emulated_shared + address;
}

/* ---- products ------------------------------------------------------------------------------------------------------------------- */

struct kind_facts {
    unsigned size; /* bytes of an element */
    bool transposed;
    double (*a)(const unsigned char *), (*b)(const unsigned char *);
};

static double e4m3(const unsigned char *p) { return ql_e4m3_to_f32(*p); }
static double e5m2(const unsigned char *p) { return ql_e5m2_to_f32(*p); }
static double s8(const unsigned char *p) { return (signed char)*p; }
static double u8(const unsigned char *p) { return *p; }
static double bf16(const unsigned char *p) { return ql_bf16_to_f32((uint16_t)(p[0] | p[1] << 8)); }
static double f16(const unsigned char *p) { return ql_f16_to_f32((uint16_t)(p[0] | p[1] << 8)); }
static const kind_facts kinds[] = {{1, false, e4m3, e4m3}, {1, false, e4m3, e5m2}, {1, false, e5m2, e4m3},
                                   {1, false, e5m2, e5m2}, {1, false, s8, s8},     {1, false, s8, u8},
                                   {2, false, bf16, bf16}, {2, false, f16, f16},   {2, true, bf16, bf16},
                                   {2, true, f16, f16}};

struct product {
    int kind;
    void *d;
    int n;
    uint64_t a, b;
    bool add;
    const uint32_t *held; /* A in registers; NULL: in shared memory */
    uint32_t quad[4][4];  /* what the four threads of a row held when the product was begun */
};
enum { MAX_THREADS = 1024, MAX_K = 32 };
static std::deque<std::vector<product>> products[MAX_THREADS]; /* the last group of a thread is open */

/* Toward zero, with `bits` bits of fraction. */
static float cut(double x, int bits) {
    float nearest = (float)x;
    if (!isfinite(x) || x == 0) return nearest;
    int exponent;
    frexp(x, &exponent);
    return (float)ldexp(trunc(ldexp(x, bits + 1 - exponent)), exponent - bits - 1);
}

static void add_to(const product &p, int i, double sum) {
    if (p.kind == S8_S8 || p.kind == S8_U8) { /* exact: below 2^53 */
        int32_t *d = (int32_t *)p.d + i;
        *d = (int32_t)(uint32_t)((p.add ? (int64_t)*d : 0) + (int64_t)sum);
        return;
    }
    float *d = (float *)p.d + i;
    /* FP8 keeps 13 bits of fraction in the tensor core, 16-bit types the 23 of FP32. */
    *d = cut((p.add ? (double)*d : 0.0) + sum, kinds[p.kind].size == 1 ? 13 : 23);
}

/* Chunks of 16 bytes stay whole whatever the swizzle. */
static void read_row(const operand_layout &l, unsigned row, unsigned size, double (*value)(const unsigned char *),
                     double *to) {
    unsigned per_chunk = l.transposed ? 1 : 16 / size;
    for (unsigned k = 0; k < MAX_K / size; k += per_chunk) {
        const unsigned char *chunk = element(l, row, k, size);
        for (unsigned i = 0; i < per_chunk; i++) to[k + i] = value(chunk + i * size);
    }
}

/* "Register Fragments for wgmma.mma_async.m64nNk16" and k32: register r of thread q of a row's quad has row + 8 (r % 2), columns
 * 2 q + 8 (r / 2) and the next, of bytes 4 q + 16 (r / 2) and the next three. */
static void read_held(const product &p, double left[2][MAX_K]) {
    if (memcmp(p.held, p.quad[threadIdx.x % 4], sizeof p.quad[0]) != 0)
        emulated_stop("registers of a product under way were overwritten");
    for (unsigned q = 0; q < 4; q++)
        for (unsigned r = 0; r < 4; r++) {
            for (unsigned byte = 0; p.kind == S8_S8 && byte < 4; byte++)
                left[r % 2][16 * (r / 2) + 4 * q + byte] = (int8_t)(p.quad[q][r] >> 8 * byte);
            for (unsigned half = 0; p.kind != S8_S8 && half < 2; half++) {
                uint16_t bits = (uint16_t)(p.quad[q][r] >> 16 * half);
                left[r % 2][8 * (r / 2) + 2 * q + half] = p.kind == F16_F16 ? ql_f16_to_f32(bits) : ql_bf16_to_f32(bits);
            }
        }
}

/* The elements of D that belong to this thread. */
static void run(const product &p) {
    const kind_facts &kind = kinds[p.kind];
    operand_layout b = decode(p.b, kind.transposed);
    unsigned thread = threadIdx.x % 128, row = thread / 32 * 16 + thread % 32 / 4;
    double left[2][MAX_K], right[MAX_K];
    if (p.held) read_held(p, left);
    else
        for (unsigned i = 0; i < 2; i++)
            read_row(decode(p.a, kind.transposed), row + 8 * i, kind.size, kind.a, left[i]);
    for (int j = 0; j < p.n / 8; j++)
        for (int c = 0; c < 2; c++) {
            read_row(b, (unsigned)j * 8 + thread % 4 * 2 + (unsigned)c, kind.size, kind.b, right);
            for (int i = 0; i < 2; i++) {
                double sum = 0;
                for (unsigned k = 0; k < MAX_K / kind.size; k++) sum += left[i][k] * right[k];
                add_to(p, 4 * j + 2 * i + c, sum);
            }
        }
}

void emulated_product(int kind, void *d, int n, uint64_t a, uint64_t b, bool add) {
    auto &mine = products[threadIdx.x];
    if (mine.empty()) mine.emplace_back();
    if (n % 8 || n > 256) emulated_stop("a product of a size that does not exist");
    mine.back().push_back({kind, d, n, a, b, add, NULL, {}});
}

void emulated_product_held(int kind, void *d, int n, const uint32_t (&a)[4], uint64_t b, bool add) {
    const emulated_slot *slots = emulated_gather(a, sizeof a);
    emulated_product(kind, d, n, 0, b, add);
    product &p = products[threadIdx.x].back().back();
    p.held = a;
    for (unsigned q = 0; q < 4; q++) memcpy(p.quad[q], &slots[threadIdx.x % 32 / 4 * 4 + q], sizeof p.quad[q]);
    emulated_release();
}

void emulated_commit_products() { products[threadIdx.x].emplace_back(); }

void emulated_wait_products(int pending) {
    auto &mine = products[threadIdx.x];
    for (; mine.size() > (size_t)pending + 1; mine.pop_front())
        for (const product &p : mine.front()) run(p);
}

void emulated_end_products() {
    for (auto &group : products[threadIdx.x])
        if (!group.empty()) emulated_stop("returns with products under way");
    products[threadIdx.x].clear();
}

/* ---- tensor maps ------------------------------------------------------------------------------------------------------------------ */

static CUresult encode(CUtensorMap *map, CUtensorMapDataType, cuuint32_t rank, void *data, const cuuint64_t *sizes,
                       const cuuint64_t *strides, const cuuint32_t *boxes, const cuuint32_t *steps,
                       CUtensorMapInterleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                       CUtensorMapFloatOOBfill) {
    bool aligned = (uintptr_t)data % 16 == 0 && strides[0] % 16 == 0 && (uintptr_t)map % 64 == 0;
    bool sized = sizes[0] && sizes[1] && sizes[0] >> 32 == 0 && sizes[1] >> 32 == 0 && strides[0] >> 40 == 0;
    bool boxed = boxes[0] == 128 && boxes[1] >= 1 && boxes[1] <= 256 && steps[0] == 1 && steps[1] == 1;
    if (rank != 2 || !aligned || !sized || !boxed || strides[0] < sizes[0] || swizzle != CU_TENSOR_MAP_SWIZZLE_128B)
        return CUDA_ERROR_INVALID_VALUE;
    *map = {(const unsigned char *)data, sizes[0], sizes[1], strides[0], boxes[1], {}};
    return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **entry, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult *result) {
    bool known = strcmp(name, "cuTensorMapEncodeTiled") == 0;
    *entry = known ? (void *)encode : NULL;
    *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

static void copy_box(unsigned char *tile, const CUtensorMap &map, int byte, int row) {
    for (uint32_t r = 0; r < map.box; r++)
        for (uint32_t b = 0; b < 128; b++) {
            int64_t from_row = (int64_t)row + r, from_byte = (int64_t)byte + b;
            bool inside =
                from_row >= 0 && from_byte >= 0 && from_row < (int64_t)map.rows && from_byte < (int64_t)map.bytes;
            uint32_t address = (uint32_t)(tile - emulated_shared) + r * 128 + b;
            emulated_shared[address ^ (address >> 7 & 7) << 4] =
                inside ? map.data[from_row * (int64_t)map.pitch + from_byte] : 0;
        }
}

void emulated_tensor_load(void *tile, const CUtensorMap *map, int byte, int row, uint64_t *barrier) {
    const CUtensorMap copy = *map;
    if (((unsigned char *)tile - emulated_shared) % 128) emulated_stop("a box that is not aligned to 128 bytes");
    memset(tile, EMULATED_POISON, copy.box * 128);
    emulated_later(barrier, copy.box * 128, [=] { copy_box((unsigned char *)tile, copy, byte, row); });
}
