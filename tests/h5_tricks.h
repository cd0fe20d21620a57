/* HDF5 files as somebody with bad intentions makes them: one dataset of an honest file, put back in a way that leads out of the file,
 * round in it, or beyond what memory holds. */
#ifndef TESTS_H5_TRICKS_H
#define TESTS_H5_TRICKS_H

#include "host/status.h"

typedef struct h5_dataset h5_dataset;

typedef struct h5_trick {
    const char *name;  /* "external_storage" */
    const char *words; /* of the refusal */
    int (*play)(const h5_dataset *d);
} h5_trick;

extern const h5_trick h5_tricks[]; /* ends with a name of NULL */

/* Plays a trick on dataset `path` ("/inputs/attn_in/sum_sq") of `file`, and takes the digest of the content away, as another program
 * would not have written one.  secret: a file that holds the same dataset and that nobody who reads `file` may open. */
ql_status h5_trick_play(const h5_trick *trick, const char *file, const char *path, const char *secret);

#endif
