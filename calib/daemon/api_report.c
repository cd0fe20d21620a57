/* The report of a job as a page (calib/report_html.h), made from what the worker said. */
#include <stdio.h>
#include <string.h>

#include "calib/daemon/api_parts.h"
#include "calib/report_html.h"
#include "calib/report_read.h"
#include "formats/json.h"
#include "host/file.h"

enum {
    MOST_OUTPUTS = 64,
    PAGE_MOST_BYTES = 16 << 20
}; /* of report.json: the only loop there is stands still meanwhile */

/* One report, or {"outputs": {"NAME": report, ...}}. */
static ql_status list_runs(const json_t *document, report_run runs[MOST_OUTPUTS], int *count) {
    const char *name;
    json_t *report, *outputs = json_object_get(document, "outputs");
    *count = 0;
    if (!outputs) {
        runs[(*count)++] = (report_run){.report = document};
        return report_check(document, "report.json");
    }
    json_object_foreach(outputs, name, report) {
        if (*count == MOST_OUTPUTS) return ql_fail(QL_FORMAT, "report.json: more than %d outputs", MOST_OUTPUTS);
        QL_TRY(report_check(report, name));
        runs[(*count)++] = (report_run){.name = name, .report = report};
    }
    return *count > 0 ? QL_OK : ql_fail(QL_FORMAT, "report.json: no outputs");
}

static ql_status make_page(const json_t *document, ql_arena *arena, response *r) {
    report_run runs[MOST_OUTPUTS];
    char *page;
    int count;
    QL_TRY(list_runs(document, runs, &count));
    QL_TRY(report_html(runs, count, arena, &page));
    r->size = strlen(page);
    r->body = ql_malloc(r->size + 1);
    if (!r->body) return ql_fail(QL_NOMEM, "no memory for the page");
    memcpy(r->body, page, r->size + 1);
    r->status = 200;
    r->type = "text/html; charset=utf-8";
    return QL_OK;
}

static ql_status answer_page(service *d, const job *j, ql_arena *arena, response *r) {
    char name[64], *path;
    json_t *document;
    snprintf(name, sizeof name, "attempt-%lld/report.json", (long long)j->attempt);
    QL_TRY(store_path(d->store, j->id, name, arena, &path));
    if (!ql_path_exists(path))
        return ql_fail(QL_MISSING, "job %s is %s and has no report", j->id, job_state_name(j->state));
    QL_TRY(ql_json_load(path, PAGE_MOST_BYTES, &document));
    ql_status status = make_page(document, arena, r);
    json_decref(document);
    return status;
}

void api_report_page(service *d, const request *q, const char *id, response *r) {
    ql_arena *arena;
    job j;
    (void)q;
    ql_status status = store_load(d->store, id, &j);
    if (status != QL_OK) {
        api_fail(r, status);
        return;
    }
    status = ql_arena_open(NULL, &arena);
    if (status == QL_OK) {
        status = answer_page(d, &j, arena, r);
        ql_arena_close(arena);
    }
    if (status == QL_FORMAT) /* not the request's fault */
        api_problem(r, 500, "no-page", ql_status_exit_code(status), ql_last_error());
    else if (status != QL_OK) api_fail(r, status);
    job_free(&j);
}
