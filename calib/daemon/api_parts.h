/* What the files of the interface share. */
#ifndef CALIB_DAEMON_API_PARTS_H
#define CALIB_DAEMON_API_PARTS_H

#include "calib/daemon/api.h"

/* The documents that the program carries (cmake/embed.cmake). */
extern const unsigned char openapi_json[], page_html[];
extern const size_t openapi_json_size, page_html_size;

void api_json(response *r, int status, json_t *document); /* takes the document; NULL: out of memory */
void api_fail(response *r, ql_status status);             /* with ql_last_error() */

const char *api_argument(const request *q, const char *name); /* NULL: not given */
/* QL_USAGE for anything but a whole number in range; *value stays when it was not given. */
ql_status api_number(const request *q, const char *name, int64_t least, int64_t most, int64_t *value);

/* api_jobs.c; id: of the path, "" without. */
void api_submit(service *d, const request *q, const char *id, response *r);
void api_list(service *d, const request *q, const char *id, response *r);
void api_show(service *d, const request *q, const char *id, response *r);
void api_remove(service *d, const request *q, const char *id, response *r);
void api_events(service *d, const request *q, const char *id, response *r);
void api_log(service *d, const request *q, const char *id, response *r);
void api_report(service *d, const request *q, const char *id, response *r);
void api_act(service *d, const request *q, const char *id, response *r);

/* api_report.c */
void api_report_page(service *d, const request *q, const char *id, response *r);

#endif
