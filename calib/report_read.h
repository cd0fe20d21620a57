/* Reports that come from a file: nothing of them is believed before report_check has looked at every field that is shown. */
#ifndef CALIB_REPORT_READ_H
#define CALIB_REPORT_READ_H

#include <jansson.h>

#include "host/mem.h"

enum { REPORT_MOST_BYTES = 64 << 20 };

/* report.json of a directory, or a file of that kind (json_decref).  QL_MISSING, QL_FORMAT with file and field. */
ql_status report_load(const char *path, json_t **report);
/* place: for messages.  QL_FORMAT for another version, a field that is missing or of the wrong type, a number out of range. */
ql_status report_check(const json_t *report, const char *place);

/* What qalib eval --json prints: has it "perplexity" and no "layers"?  And is it whole? */
bool report_is_eval(const json_t *document);
ql_status report_check_eval(const json_t *eval, const char *place);

/* Of what was checked: 0 and "-" where a field is absent or null. */
static inline double report_number(const json_t *object, const char *key) {
    return json_number_value(json_object_get(object, key));
}
static inline const char *report_text(const json_t *object, const char *key) {
    const char *value = json_string_value(json_object_get(object, key));
    return value ? value : "-";
}
static inline bool report_has(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return value && !json_is_null(value);
}

#endif
