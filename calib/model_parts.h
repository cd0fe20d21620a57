/* What the files of calib/model share among themselves. */
#ifndef CALIB_MODEL_PARTS_H
#define CALIB_MODEL_PARTS_H

#include "calib/model.h"

/* How the runtime rounds the inputs of a quantized module. */
ql_status linear_set_inputs(const model *m, const qmodule *q, ql_arena *device, linear *lin);

/* Packs the codes of a module for the product that model_plan_inputs planned; lin->packed stays NULL where none takes them. */
ql_status linear_set_bytes(const model *m, linear_id id, const qmodule *q, ql_arena *device, linear *lin);

#endif
