/* report.json: what was done to every module, what it cost, and how good it is by its own measure.  report.schema.json says the same to
 * programs, report.html (calib/report_html.h) shows it to people.
 *
 *   "version"             1
 *   "job"                 fingerprint of everything that decides the bytes of the output
 *   "model"               the directory that was quantized
 *   "format"              as --format of quantize names it: "gptq", "awq", "gguf", ...
 *   "importance"          "gguf" alone: where the weight of each input came from, "none", "imatrix", or as "statistics"
 *   "statistics"          "propagated" (inputs come through quantized blocks), "fp" (through the original), "none" (no data)
 *   "forward"             "fp32" or "bf16": what activations are rounded to
 *   "samples" "tokens"    rows and tokens of calibration; 0 without rows, also when statistics come from a store
 *   "samples_skipped"     rows left out because they became non-finite
 *   "recipe"              the resolved recipe, fields as in calib/recipe.h
 *   "layers"              for each layer the list of its modules:
 *     "name" "n" "k" "bits" "group_size" "method" "damp" "dead_columns"     n outputs, k inputs; left in 16 bits: "bits": 16 and no method
 *     "fallback"            why it was rounded to nearest, or null
 *     "stored"              the block format of GGUF; only there
 *     "input_outlier"       root mean square of the largest channel of the input over that of the median one; null: no Hessian was read
 *     "loss" "rtn_loss"     tr(E H E^T), the output's squared error on the calibration rows; and nearest rounding's
 *     "relative_error"      loss over the squared output itself
 *   "totals"              "modules_quantized" "modules_kept" "fallbacks" "dead_columns" "mean_relative_error", "loss_over_rtn" (sums)
 *   "kept_in_16_bits"     names of the modules that were not quantized
 *   "source_bytes" "output_bytes"                       of all tensors
 *   "bits_per_weight" "bits_per_quantized_weight"       output bits over the source's weights; the quantized modules alone
 *   "environment"         all that may differ between two runs of one job:
 *     "qalib" "device" "threads" "device_description"       version; "cpu" or "cuda:N"; processor and libraries with their versions
 *     "seconds"             of the job, and of each of the "phases", which also have a "name", "flops" and "peak_bytes" (of the memory
 *                           that layers work in)
 *     "rows"                "device", "host between steps" or "host": where activations waited
 *     "peak_host_bytes" "peak_device_bytes"                 of the process; of the device's arenas
 */
#ifndef CALIB_REPORT_H
#define CALIB_REPORT_H

#include "calib/layer.h"

/* One layer's modules.  NULL: out of memory. */
json_t *report_layer(const layer_result *result, const module_rule *rules, const model_config *config);

/* Totals over all layers' records. */
json_t *report_totals(const json_t *layers);

/* The host's side: seconds by phase, peak memory of the process and of the device, device and libraries. */
json_t *report_environment(engine *e, size_t peak_device_bytes);

/* For people, on stdout: a table of the modules, or of the layers when there are very many, and the totals. */
void report_print(const json_t *report);

#endif
