/* report.json: what was done to every module, what it cost, and how good it is by its own measure. */
#ifndef CALIB_REPORT_H
#define CALIB_REPORT_H

#include "calib/layer.h"

/* One layer's modules: [{"name", "n", "k", "bits", "group_size", "method", "damp", "loss", "rtn_loss", "relative_error",
 * "dead_columns", "fallback", "seconds"}, ...]; modules left in 16 bits have "bits": 16.  NULL: out of memory. */
json_t *report_layer(const layer_result *result, const module_rule *rules, const model_config *config);

/* Totals over all layers' records: modules by method, fallbacks, dead columns, mean relative error. */
json_t *report_totals(const json_t *layers);

/* The host's side: seconds by phase, peak memory of the process and of the device, device and libraries. */
json_t *report_environment(ql_ctx *ctx, phases *p, size_t peak_device_bytes);

/* A table of the modules for people, on stdout. */
void report_print(const json_t *report);

#endif
