/* Is a directory what it says?  By hash (every line of SHA256SUMS), by structure (the tensors that config.json and the scheme
 * imply, no others, exact shapes; index; no stray shards), by numbers (scales, zero points, groups, finite values), and if a base
 * is given by the error of the decoded weights.  Works on files of other tools and on dense checkpoints too.  A GGUF file, alone or in
 * a directory, is judged by its keys instead of config.json.
 *
 *   verify_result result;
 *   QL_TRY(verify_directory(dir, NULL, arena, &result));     // a mismatch is a finding, not a failure
 *   if (result.findings > 0) ...
 */
#ifndef CALIB_VERIFY_H
#define CALIB_VERIFY_H

#include "host/mem.h"

enum { VERIFY_SHOWN = 20 };

typedef struct verify_row {
    const char *module;
    int bits; /* 0: not quantized */
    int64_t group;
    double error, bound; /* |W - W'| / |W|, Frobenius norms */
} verify_row;

typedef struct verify_result {
    bool quantized, hashed; /* hashed: there is a SHA256SUMS */
    int64_t files, tensors, modules;
    int64_t findings, extras;
    const char *finding[VERIFY_SHOWN]; /* the first ones */
    const char *extra[VERIFY_SHOWN];   /* files that SHA256SUMS does not know and no loader reads */
    verify_row *rows;                  /* with a base: one per Linear */
    int64_t row_count;
} verify_result;

/* Texts live in `arena`.  Fails only when it cannot do its work: a missing directory, no memory, a read error. */
ql_status verify_directory(const char *dir, const char *base, ql_arena *arena, verify_result *result);

#endif
