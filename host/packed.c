/* Packed weights: where their sections lie, and the doors to packing, unpacking and checking. */
#include "host/packed.h"

#include <string.h>

#include "host/check.h"
#include "host/mem.h"
#include "host/ops.h"
#include "host/product.h"

static const char magic[8] = {'Q', 'L', 'P', 'A', 'C', 'K', 'E', 'D'};

/* ---- the layout ----------------------------------------------------------------------------------------------------------- */

/* Every dimension is below 2^31, so a section below 2^60 elements of at most 4 bytes keeps all sums below 2^64. */
static uint64_t add_section(ql_packed *p, uint64_t bytes) {
    uint64_t start = p->bytes;
    p->bytes += (bytes + QL_PACKED_ALIGN - 1) / QL_PACKED_ALIGN * QL_PACKED_ALIGN;
    return bytes ? start : 0;
}

static uint64_t scale_bytes(const ql_product *product, const ql_packed *p) {
    switch (product->w_scale) {
    case QL_SCALE_TENSOR: return sizeof(float);
    case QL_SCALE_ROW: return (uint64_t)p->n * sizeof(float);
    case QL_SCALE_GROUP: return (uint64_t)ql_packed_at(p, 0, ql_packed_groups(p)) * ql_dtype_size(product->scale);
    case QL_SCALE_BLOCK: return (uint64_t)(ql_ceil_div(p->n, 128) * ql_ceil_div(p->k, 128)) * sizeof(float);
    default: return 0;
    }
}

ql_status ql_packed_describe(const ql_product *product, ql_packed *p) {
    int codes = product->w == QL_U8, grouped = product->w_scale == QL_SCALE_GROUP;
    if (product->n > (INT64_C(1) << 60) / product->k)
        return ql_fail(QL_UNSUPPORTED, "product: n %lld and k %lld, expected n k below 2^60", (long long)product->n,
                       (long long)product->k);
    *p = (ql_packed){.version = QL_PACKED_VERSION,
                     .layout = codes ? QL_LAYOUT_TILES : QL_LAYOUT_ROWS,
                     .n = product->n,
                     .k = product->k,
                     .group = grouped ? product->group : product->k,
                     .bits = codes ? (uint32_t)product->bits : 0,
                     .dtype = product->w,
                     .scale_mode = product->w_scale,
                     .scale_dtype = grouped ? product->scale : QL_F32,
                     .zero_points = product->zero_points != 0,
                     .sums_of_rows = product->x_zero != 0,
                     .ordered = product->ordered != 0,
                     .bytes = sizeof *p};
    memcpy(p->magic, magic, sizeof magic);
    p->values = add_section(p, codes ? (uint64_t)ql_tiles_bytes(p->n, p->k, product->bits)
                                     : (uint64_t)(p->n * p->k) * ql_dtype_size(product->w));
    p->scale = add_section(p, scale_bytes(product, p));
    p->zero = add_section(p, p->zero_points ? (uint64_t)ql_packed_at(p, 0, ql_packed_groups(p)) : 0);
    p->sums = add_section(p, p->sums_of_rows ? (uint64_t)p->n * sizeof(int32_t) : 0);
    p->order = add_section(p, p->ordered ? (uint64_t)p->k * sizeof(int32_t) : 0);
    return QL_OK;
}

/* ---- the doors ------------------------------------------------------------------------------------------------------------ */

static ql_status check_packed(const char *name, const ql_plan *plan, const void *packed) {
    QL_TRY(check_host(name, plan));
    if (packed && (uintptr_t)packed % QL_PACKED_ALIGN == 0) return QL_OK;
    return ql_fail(QL_INVALID, "%s: packed weight at %p, expected an address that is a multiple of %d", name, packed,
                   QL_PACKED_ALIGN);
}

/* Present with this shape where the product has it, absent where not. */
static ql_status check_part(const char *name, int wanted, ql_mat mat, ql_dtype dtype, int64_t rows, int64_t cols) {
    if (wanted && !ql_is_present(mat)) return ql_fail(QL_INVALID, "%s: absent, the product has it", name);
    if (wanted) return check_mat(name, mat, dtype, rows, cols);
    return ql_is_present(mat) ? ql_fail(QL_INVALID, "%s: present, the product has none", name) : QL_OK;
}

static ql_status check_weight(const ql_plan *plan, const ql_weight *w) {
    const ql_product *p = &plan->product;
    int64_t groups = ql_packed_groups(&plan->packed);
    QL_TRY(check_host("weight", w));
    QL_TRY(check_part("weight: values", 1, w->values, p->w, p->n, p->k));
    QL_TRY(check_part("weight: zero", p->zero_points, w->zero, QL_U8, p->n, groups));
    QL_TRY(check_part("weight: order", p->ordered, w->order, QL_I32, 1, p->k));
    switch (p->w_scale) {
    case QL_SCALE_TENSOR: return check_part("weight: scale", 1, w->scale, QL_F32, 1, 1);
    case QL_SCALE_ROW: return check_part("weight: scale", 1, w->scale, QL_F32, 1, p->n);
    case QL_SCALE_GROUP: return check_part("weight: scale", 1, w->scale, QL_F32, p->n, groups);
    case QL_SCALE_BLOCK:
        return check_part("weight: scale", 1, w->scale, QL_F32, ql_ceil_div(p->n, 128), ql_ceil_div(p->k, 128));
    default: return check_part("weight: scale", 0, w->scale, QL_F32, 0, 0);
    }
}

/* order[position] = input, from the group of each input: a stable counting sort.  next[g]: the position of its next input. */
static ql_status sort_inputs(const ql_packed *p, const int32_t *g_idx, int32_t *order, int64_t *next) {
    int64_t groups = ql_packed_groups(p);
    for (int64_t g = 0; g < groups; g++) next[g] = g * p->group;
    for (int64_t i = 0; i < p->k; i++) {
        int64_t g = g_idx[i], end;
        if (g < 0 || g >= groups)
            return ql_fail(QL_INVALID, "weight: order[%lld] is %d, there are %lld groups", (long long)i, (int)g_idx[i],
                           (long long)groups);
        end = g == groups - 1 ? p->k : (g + 1) * p->group;
        if (next[g] == end)
            return ql_fail(QL_INVALID, "weight: order: group %lld has more than %lld inputs", (long long)g,
                           (long long)(end - g * p->group));
        order[next[g]++] = (int32_t)i;
    }
    return QL_OK;
}

/* Host memory for the order: k positions, zero up to the end of the section, and one counter per group. */
static ql_status take_order(const ql_packed *p, int32_t **order, int32_t **g_idx, int64_t **next) {
    size_t section = (size_t)(p->bytes - p->order), counters = (size_t)ql_packed_groups(p) * sizeof **next;
    char *memory = ql_malloc(2 * section + counters);
    if (!memory) return ql_fail(QL_NOMEM, "weight: no memory for the order of %lld inputs", (long long)p->k);
    memset(memory, 0, section);
    *order = (int32_t *)memory, *g_idx = (int32_t *)(memory + section), *next = (int64_t *)(memory + 2 * section);
    return QL_OK;
}

static ql_status pack_order(ql_ctx *ctx, const ql_packed *p, ql_mat groups, void *packed) {
    int32_t *order = NULL, *g_idx = NULL;
    int64_t *next = NULL;
    QL_TRY(take_order(p, &order, &g_idx, &next));
    ql_status status = ql_download(ctx, g_idx, groups.data, (size_t)p->k * sizeof *g_idx);
    if (status == QL_OK) status = sort_inputs(p, g_idx, order, next);
    if (status == QL_OK) status = ql_upload(ctx, (char *)packed + p->order, order, (size_t)(p->bytes - p->order));
    ql_mfree(order);
    return status;
}

static ql_status unpack_order(ql_ctx *ctx, const ql_packed *p, const void *packed, ql_mat groups) {
    int32_t *order = NULL, *g_idx = NULL;
    int64_t *next = NULL;
    QL_TRY(take_order(p, &order, &g_idx, &next));
    ql_status status = ql_download(ctx, order, (const char *)packed + p->order, (size_t)p->k * sizeof *order);
    for (int64_t at = 0; status == QL_OK && at < p->k; at++) {
        if (order[at] < 0 || order[at] >= p->k)
            status = ql_fail(QL_FORMAT, "packed weight: position %lld holds input %d, there are %lld", (long long)at,
                             (int)order[at], (long long)p->k);
        else g_idx[order[at]] = (int32_t)(at / p->group);
    }
    if (status == QL_OK) status = ql_upload(ctx, groups.data, g_idx, (size_t)p->k * sizeof *g_idx);
    ql_mfree(order);
    return status;
}

/* The header's words here, the others where they lie. */
static ql_status whole_checksum(ql_ctx *ctx, const ql_packed *header, const void *packed, uint64_t *sum) {
    ql_packed bare = *header;
    uint64_t words[sizeof(ql_packed) / sizeof(uint64_t)];
    QL_TRY(ctx->ops->checksum(ctx, packed, (size_t)header->bytes, sum));
    bare.checksum = 0;
    memcpy(words, &bare, sizeof bare);
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) *sum += ql_packed_mix(words[i], i);
    return QL_OK;
}

ql_status ql_pack_weight(ql_ctx *ctx, const ql_plan *plan, const ql_weight *weight, void *packed) {
    QL_TRY(check_packed("pack_weight", plan, packed));
    QL_TRY(check_weight(plan, weight));
    ql_packed header = plan->packed;
    if (header.ordered) QL_TRY(pack_order(ctx, &header, weight->order, packed));
    QL_TRY(ctx->ops->pack_weight(ctx, plan, weight, packed));
    QL_TRY(whole_checksum(ctx, &header, packed, &header.checksum));
    return ql_upload(ctx, packed, &header, sizeof header);
}

static ql_status differs(const char *what, int64_t found, int64_t expected) {
    return ql_fail(QL_MISMATCH, "packed weight: %s is %lld, the plan has %lld", what, (long long)found,
                   (long long)expected);
}

/* Everything that the plan knows beforehand. */
static ql_status check_header(const ql_packed *found, const ql_packed *plan) {
    if (memcmp(found->magic, magic, sizeof magic) != 0)
        return ql_fail(QL_FORMAT, "packed weight: does not begin with QLPACKED");
    const struct {
        const char *name;
        int64_t found, expected;
    } fields[] = {
        {"version", found->version, plan->version},
        {"layout", found->layout, plan->layout},
        {"n", found->n, plan->n},
        {"k", found->k, plan->k},
        {"group", found->group, plan->group},
        {"bits", found->bits, plan->bits},
        {"dtype", found->dtype, plan->dtype},
        {"scale mode", found->scale_mode, plan->scale_mode},
        {"dtype of scales", found->scale_dtype, plan->scale_dtype},
        {"presence of zero points", found->zero_points, plan->zero_points},
        {"presence of sums", found->sums_of_rows, plan->sums_of_rows},
        {"presence of an order", found->ordered, plan->ordered},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (fields[i].found != fields[i].expected) return differs(fields[i].name, fields[i].found, fields[i].expected);
    ql_packed rest = *found; /* offsets and size follow from the fields above */
    rest.checksum = plan->checksum;
    if (memcmp(&rest, plan, sizeof rest) == 0) return QL_OK;
    return ql_fail(QL_FORMAT, "packed weight: offsets, size or reserved bytes of the header are damaged");
}

ql_status ql_check_weight(ql_ctx *ctx, const ql_plan *plan, const void *packed) {
    ql_packed header;
    uint64_t sum;
    QL_TRY(check_packed("check_weight", plan, packed));
    QL_TRY(ql_download(ctx, &header, packed, sizeof header));
    QL_TRY(check_header(&header, &plan->packed));
    QL_TRY(whole_checksum(ctx, &header, packed, &sum));
    if (sum == header.checksum) return QL_OK;
    return ql_fail(QL_FORMAT, "packed weight: damaged, checksum %016llx, expected %016llx", (unsigned long long)sum,
                   (unsigned long long)header.checksum);
}

ql_status ql_unpack_weight(ql_ctx *ctx, const ql_plan *plan, const void *packed, const ql_weight *weight) {
    QL_TRY(check_packed("unpack_weight", plan, packed));
    QL_TRY(check_weight(plan, weight));
    QL_TRY(ql_check_weight(ctx, plan, packed));
    if (plan->packed.ordered) QL_TRY(unpack_order(ctx, &plan->packed, packed, weight->order));
    return ctx->ops->unpack_weight(ctx, plan, packed, weight);
}
