#include "calib/ranks.h"

#include <math.h>
#include <string.h>

#include "calib/method/method.h"
#include "host/mat.h"

/* Bytes that all ranks together work on at a time: enough for large messages, little beside the matrices. */
enum { ROUND_BYTES = 1 << 22, PIECE_BYTES = 1 << 24 };

leaf_range ranks_leaves(const ql_comm *comm, int64_t rows) {
    int rank = ql_comm_rank(comm), ranks = ql_comm_size(comm);
    return (leaf_range){LEAVES * rank / ranks, LEAVES * (rank + 1) / ranks, rows};
}

/* ---- sums ------------------------------------------------------------------------------------------------------------------- */

/* Everyone's nodes from left to right; those of rank r are [begin[r], begin[r + 1]). */
typedef struct forest {
    tree_node node[QL_RANKS_MAX * TREE_DEPTH];
    int begin[QL_RANKS_MAX + 1];
} forest;

static void find_nodes(int ranks, int64_t rows, forest *f) {
    f->begin[0] = 0;
    for (int r = 0; r < ranks; r++) {
        const leaf_range leaves = {LEAVES * r / ranks, LEAVES * (r + 1) / ranks, rows};
        f->begin[r + 1] = f->begin[r] + tree_nodes(leaves, f->node + f->begin[r]);
    }
}

/* One round: rank r sums rows [at(r), at(r + 1)) of the matrix. */
typedef struct join {
    ql_comm *comm;
    const tree *t;
    const forest *forest;
    int rank, ranks;
    int64_t begin, height; /* of the round, per rank */
    char *out, *in, *all;
} join;

static int64_t row_at(const join *j, int rank) {
    int64_t row = j->begin + rank * j->height, rows = j->t->into->rows;
    return row < rows ? row : rows;
}

static size_t bytes_of(const join *j, int rank) {
    const ql_mat *sum = j->t->into;
    return (size_t)((row_at(j, rank + 1) - row_at(j, rank)) * sum->cols) * ql_dtype_size(sum->dtype);
}

static ql_status download(const join *j, int rank, char *to) {
    for (int i = 0; i < j->t->used; i++, to += bytes_of(j, rank)) {
        ql_mat rows = ql_rows(j->t->node[i].sum, row_at(j, rank), row_at(j, rank + 1) - row_at(j, rank));
        QL_TRY(ql_download(j->t->ctx, to, rows.data, bytes_of(j, rank)));
    }
    return QL_OK;
}

/* Each rank gets its rows of everyone's nodes. */
static ql_status collect(const join *j) {
    ql_message out[QL_RANKS_MAX], in[QL_RANKS_MAX];
    int n_out = 0, n_in = 0;
    char *to = j->out;
    for (int r = 0; r < j->ranks; r++) {
        int theirs = j->forest->begin[r + 1] - j->forest->begin[r];
        char *from = j->in + (size_t)j->forest->begin[r] * bytes_of(j, j->rank);
        if (r == j->rank) {
            QL_TRY(download(j, r, from));
            continue;
        }
        size_t mine = (size_t)j->t->used * bytes_of(j, r), others = (size_t)theirs * bytes_of(j, j->rank);
        QL_TRY(download(j, r, to));
        if (mine) out[n_out++] = (ql_message){r, to, mine};
        if (others) in[n_in++] = (ql_message){r, from, others};
        to += mine;
    }
    return ql_comm_exchange(j->comm, "nodes", out, n_out, in, n_in);
}

static void add_host(ql_dtype dtype, void *sum, const void *term, size_t bytes) {
    float *s = sum;
    double *d = sum;
    for (size_t i = 0; dtype == QL_F32 && i < bytes / sizeof *s; i++) s[i] += ((const float *)term)[i];
    for (size_t i = 0; dtype == QL_F64 && i < bytes / sizeof *d; i++) d[i] += ((const double *)term)[i];
}

/* The nodes of my rows, from left to right, along the tree; the sum ends in the memory of the first. */
static void sum_nodes(const join *j) {
    tree_node stack[TREE_DEPTH];
    size_t bytes = bytes_of(j, j->rank);
    int used = 0, nodes = j->forest->begin[j->ranks];
    for (int i = 0; i < nodes; i++) {
        stack[used] = j->forest->node[i];
        stack[used++].sum.data = j->in + (size_t)i * bytes;
        while (tree_climb(stack, used, j->t->rows)) {
            add_host(j->t->into->dtype, stack[used - 2].sum.data, stack[used - 1].sum.data, bytes);
            used--;
        }
    }
}

/* Everyone gets everyone's sums. */
static ql_status spread(const join *j) {
    size_t begin[QL_RANKS_MAX + 1] = {0};
    for (int r = 0; r < j->ranks; r++) begin[r + 1] = begin[r] + bytes_of(j, r);
    memcpy(j->all + begin[j->rank], j->in, bytes_of(j, j->rank));
    QL_TRY(ql_comm_gather(j->comm, "sums", begin, j->all));
    return ql_upload(j->t->ctx, ql_rows(*j->t->into, j->begin, 0).data, j->all, begin[j->ranks]);
}

static ql_status join_rounds(join *j, ql_arena *host) {
    forest *f;
    const ql_mat *sum = j->t->into;
    size_t row = (size_t)sum->cols * ql_dtype_size(sum->dtype);
    QL_TRY(ql_take(host, 1, sizeof *f, &f));
    find_nodes(j->ranks, j->t->rows, f);
    j->forest = f;
    j->height = ql_at_most(ROUND_BYTES / (j->ranks * (int64_t)row) + 1, ql_ceil_div(sum->rows, j->ranks));
    QL_TRY(ql_take(host, (size_t)(j->t->used * (j->ranks - 1) * j->height), row, &j->out));
    QL_TRY(ql_take(host, (size_t)(f->begin[j->ranks] * j->height), row, &j->in));
    QL_TRY(ql_take(host, (size_t)(j->ranks * j->height), row, &j->all));
    for (j->begin = 0; j->begin < sum->rows; j->begin += j->ranks * j->height) {
        QL_TRY(collect(j));
        sum_nodes(j);
        QL_TRY(spread(j));
    }
    return QL_OK;
}

ql_status ranks_join_tree(ql_comm *comm, tree *t) {
    join j = {.comm = comm, .t = t, .rank = ql_comm_rank(comm), .ranks = ql_comm_size(comm)};
    ql_arena *host;
    if (j.ranks == 1) return QL_OK;
    QL_TRY(ql_arena_open(NULL, &host));
    ql_status status = join_rounds(&j, host);
    ql_arena_close(host);
    return status;
}

/* ---- what has no order ------------------------------------------------------------------------------------------------------ */

typedef void combine(void *into, const void *other, int64_t count);

static void keep_least(void *into, const void *other, int64_t count) {
    for (int64_t i = 0; i < count; i++) ((float *)into)[i] = fminf(((float *)into)[i], ((const float *)other)[i]);
}
static void keep_most(void *into, const void *other, int64_t count) {
    for (int64_t i = 0; i < count; i++) ((float *)into)[i] = fmaxf(((float *)into)[i], ((const float *)other)[i]);
}
static void add_counts(void *into, const void *other, int64_t count) {
    for (int64_t i = 0; i < count; i++) ((uint64_t *)into)[i] += ((const uint64_t *)other)[i];
}

static ql_status join_values(ql_comm *comm, const char *what, void *values, int64_t count, size_t size,
                             combine *merge) {
    size_t begin[QL_RANKS_MAX + 1], bytes = (size_t)count * size;
    char *all = ql_malloc((size_t)ql_comm_size(comm) * bytes);
    if (!all) return ql_fail(QL_NOMEM, "%s: no memory for the values of all ranks", what);
    for (int r = 0; r <= ql_comm_size(comm); r++) begin[r] = (size_t)r * bytes;
    memcpy(all + begin[ql_comm_rank(comm)], values, bytes);
    ql_status status = ql_comm_gather(comm, what, begin, all);
    if (status == QL_OK) memcpy(values, all, bytes);
    for (int r = 1; status == QL_OK && r < ql_comm_size(comm); r++) merge(values, all + begin[r], count);
    ql_mfree(all);
    return status;
}

static ql_status join_mat(ql_comm *comm, ql_ctx *ctx, const char *what, ql_mat mat, combine *merge) {
    ql_arena *host;
    void *values;
    if (!ql_is_present(mat)) return QL_OK;
    QL_TRY(ql_arena_open(NULL, &host));
    ql_status status = ql_arena_download(host, ctx, mat, &values);
    if (status == QL_OK) status = join_values(comm, what, values, mat.rows * mat.cols, ql_dtype_size(mat.dtype), merge);
    if (status == QL_OK) status = ql_upload(ctx, mat.data, values, ql_mat_bytes(mat));
    ql_arena_close(host);
    return status;
}

ql_status ranks_join_extremes(ql_comm *comm, ql_ctx *ctx, capture *c) {
    if (ql_comm_size(comm) == 1) return QL_OK;
    QL_TRY(join_values(comm, "tokens", &c->count, 1, sizeof c->count, add_counts));
    QL_TRY(join_mat(comm, ctx, "least", c->min, keep_least));
    QL_TRY(join_mat(comm, ctx, "most", c->max, keep_most));
    return join_mat(comm, ctx, "counts", c->hist, add_counts);
}

ql_status ranks_sum(ql_comm *comm, const char *what, int64_t *number) {
    return join_values(comm, what, number, 1, sizeof *number, add_counts);
}

/* ---- factors ---------------------------------------------------------------------------------------------------------------- */

int ranks_owner(const ql_comm *comm, const model_config *config, site_id site) {
    double load[QL_RANKS_MAX] = {0};
    bool placed[SITES] = {false};
    for (int i = 0; i < SITES; i++) {
        site_id largest = SITES;
        int idle = 0;
        for (site_id s = 0; s < SITES; s++)
            if (!placed[s] && (largest == SITES || site_width(config, s) > site_width(config, largest))) largest = s;
        for (int r = 1; r < ql_comm_size(comm); r++)
            if (load[r] < load[idle]) idle = r;
        if (largest == site) return idle;
        placed[largest] = true;
        load[idle] += pow((double)site_width(config, largest), 3);
    }
    return 0;
}

ql_status ranks_send(ql_comm *comm, ql_ctx *ctx, const char *what, int owner, ql_mat mat) {
    bool mine = ql_comm_rank(comm) == owner;
    size_t bytes = ql_mat_bytes(mat), piece = bytes < PIECE_BYTES ? bytes : PIECE_BYTES;
    if (ql_comm_size(comm) == 1) return QL_OK;
    char *host = ql_malloc(piece ? piece : 1), *device = mat.data;
    if (!host) return ql_fail(QL_NOMEM, "%s: no memory for %zu bytes", what, piece);
    ql_status status = QL_OK;
    for (size_t at = 0; status == QL_OK && at < bytes; at += piece) {
        size_t size = bytes - at < piece ? bytes - at : piece;
        if (mine) status = ql_download(ctx, host, device + at, size);
        if (status == QL_OK) status = ql_comm_broadcast(comm, what, owner, host, size);
        if (status == QL_OK && !mine) status = ql_upload(ctx, device + at, host, size);
    }
    ql_mfree(host);
    return status;
}

/* ---- rows of weights -------------------------------------------------------------------------------------------------------- */

static int64_t panel_at(const ql_comm *comm, int64_t n, int rank) {
    return ql_ceil_div(n, panel_height(n)) * rank / ql_comm_size(comm);
}

row_range ranks_rows(const ql_comm *comm, int64_t n, int rank) {
    int64_t first = panel_at(comm, n, rank) * panel_height(n), end = panel_at(comm, n, rank + 1) * panel_height(n);
    return (row_range){first, (end < n ? end : n) - first};
}

ql_status ranks_gather_rows(ql_comm *comm, const char *what, int64_t n, size_t size, void *all) {
    size_t begin[QL_RANKS_MAX + 1];
    if (ql_comm_size(comm) == 1) return QL_OK;
    for (int r = 0; r < ql_comm_size(comm); r++) begin[r] = (size_t)ranks_rows(comm, n, r).first * size;
    begin[ql_comm_size(comm)] = (size_t)n * size;
    return ql_comm_gather(comm, what, begin, all);
}

ql_status ranks_gather_panels(ql_comm *comm, const char *what, int64_t n, size_t size, void *all) {
    size_t begin[QL_RANKS_MAX + 1];
    for (int r = 0; r <= ql_comm_size(comm); r++) begin[r] = (size_t)panel_at(comm, n, r) * size;
    return ql_comm_gather(comm, what, begin, all);
}

ql_status ranks_record(ql_comm *comm, const char *dir, ql_arena *arena) {
    char *path;
    QL_TRY(ql_arena_format(arena, &path, "%s/flight-rank-%d.json", dir, ql_comm_rank(comm)));
    ql_comm_record(comm, path);
    return QL_OK;
}
