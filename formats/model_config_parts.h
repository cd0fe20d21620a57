/* The parts of model_config_parse that live in files of their own. */
#ifndef FORMATS_MODEL_CONFIG_PARTS_H
#define FORMATS_MODEL_CONFIG_PARTS_H

#include "formats/json.h"
#include "formats/model_config.h"

/* rope_theta, rope_scaling, rope_parameters; out->max_position and out->head_dim are known. */
ql_status rope_parse(const json_t *config, const char *place, model_config *out);

/* Refuses or reports the fields that no other part reads. */
ql_status check_fields(const json_t *config, const char *place);

#endif
