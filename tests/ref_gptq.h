/* GPTQ as its authors wrote it down, in double and without any cleverness: an explicit inverse by Gauss-Jordan, its Cholesky factor
 * by the schoolbook, every update at once.  What our solvers do in blocks, by halves or without an inverse must equal it. */
#ifndef TESTS_REF_GPTQ_H
#define TESTS_REF_GPTQ_H

#include "tests/backend.h"

typedef struct ref_gptq_job {
    int bits, symmetric;
    int64_t group;
    ql_act_order order; /* of the literature */
    ql_mat w, h;        /* [n][k]; [k][k], upper triangle */
    double scale;       /* of h, literature only */
    ql_mat position;    /* I32 [1][k], the order of the columns; filled in by ref_literature */
    ql_grid grid;       /* scales F64; filled in by ref_literature */
    ql_mat codes;       /* U8 [n][k] */
    ql_mat margin;      /* F64 [n][k]: distance of the value from the nearest rounding tie, in steps */
} ref_gptq_job;

/* Fixed grids: the original recursion with H + shift I. */
void ref_gptq(ref_gptq_job *job, double shift);

/* Everything as in the paper's code: dead columns, damping, order, groups. */
void ref_literature(ref_gptq_job *job);

/* Codes agree in each row up to its first code that lies within `tie` of a rounding tie and differs; from there on the rows are
 * different problems.  Such rows may be at most `share` of all. */
void assert_codes_agree(const ref_gptq_job *job, ql_mat codes, double tie, double share);

#endif
