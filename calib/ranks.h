/* How the ranks of a job share its work.
 *
 *   rows of tokens   leaves of the tree (calib/tree.h), neighbours to one rank; statistics are joined, and everyone has them
 *   factors          each at its owner, who sends it to all
 *   rows of weights  panels of fixed height, neighbours to one rank; codes are gathered, and everyone has them
 *   files            rank 0 writes, everyone reads
 *
 * comm NULL: one rank.  Every function is called by all ranks, in the same order.
 */
#ifndef CALIB_RANKS_H
#define CALIB_RANKS_H

#include "calib/capture.h"
#include "calib/model.h"
#include "calib/tree.h"
#include "host/comm.h"

/* The leaves of this rank. */
leaf_range ranks_leaves(const ql_comm *comm, int64_t rows);

/* The sum over all ranks, in everyone's *t->into.  The memory of the other matrices of `t` is free afterwards. */
ql_status ranks_join_tree(ql_comm *comm, tree *t);
/* The rest of a capture: number of tokens, smallest and largest values, counts. */
ql_status ranks_join_extremes(ql_comm *comm, ql_ctx *ctx, capture *c);
/* Where each rank leaves its last steps if the ranks lose each other: DIR/flight-rank-N.json.  The name lives in `arena`. */
ql_status ranks_record(ql_comm *comm, const char *dir, ql_arena *arena);
/* The sum of everyone's number, in its place. */
ql_status ranks_sum(ql_comm *comm, const char *what, int64_t *number);

/* Who factors the statistics of an input: the largest go first, each to the rank with the least to do. */
int ranks_owner(const ql_comm *comm, const model_config *config, site_id site);
/* A matrix, ld = cols, from its owner to all. */
ql_status ranks_send(ql_comm *comm, ql_ctx *ctx, const char *what, int owner, ql_mat mat);

/* Rows [first, first + count) of a weight. */
typedef struct row_range {
    int64_t first, count;
} row_range;

row_range ranks_rows(const ql_comm *comm, int64_t n, int rank); /* of `rank` */
/* all: host, `size` bytes per row of n, of which this rank has filled in its own. */
ql_status ranks_gather_rows(ql_comm *comm, const char *what, int64_t n, size_t size, void *all);
/* The same with one element of `size` bytes per panel. */
ql_status ranks_gather_panels(ql_comm *comm, const char *what, int64_t n, size_t size, void *all);

#endif
