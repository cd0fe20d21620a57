/* Two descriptions of a job, field by field. */
#ifndef CALIB_DIFFERENCES_H
#define CALIB_DIFFERENCES_H

#include <jansson.h>

#include "host/mem.h"

/* Compares the JSON file with `now`.  QL_MISMATCH lists every field that differs, was not there or is no longer there. */
ql_status differences_refuse(const char *path, const json_t *now);

#endif
