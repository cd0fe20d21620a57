#include "calib/daemon/api.h"

#include <stdio.h>
#include <string.h>

#include "calib/daemon/api_parts.h"
#include "formats/json.h"
#include "host/log.h"

/* ---- answers ---------------------------------------------------------------------------------------------------------------- */

void api_free(response *r) {
    ql_mfree(r->body);
    r->body = NULL;
}

static void answer_text(response *r, int status, const char *type, char *text) {
    r->status = status;
    r->type = type;
    r->body = text;
    r->size = strlen(text);
}

/* The text may hold whatever was asked for: only what JSON allows goes out. */
void api_problem(response *r, int status, const char *code, int exit_code, const char *detail) {
    job scratch; /* for its way with odd bytes */
    char *text = NULL;
    job_set_reason(&scratch, "%s", detail);
    json_t *d = json_pack("{s:s, s:i, s:s, s:s, s:i}", "type", "about:blank", "status", status, "code", code, "detail",
                          scratch.reason, "exit_code", exit_code);
    api_free(r);
    r->status = status;
    r->type = "application/problem+json";
    r->size = 0;
    if (d && ql_json_text(d, JSON_COMPACT, &text) == QL_OK) answer_text(r, status, r->type, text);
    json_decref(d);
}

void api_fail(response *r, ql_status status) {
    static const struct {
        ql_status status;
        int http;
        const char *code;
    } rows[] = {{QL_USAGE, 400, "bad-request"},  {QL_FORMAT, 400, "bad-request"},  {QL_MISMATCH, 422, "bad-recipe"},
                {QL_DEVICE, 422, "no-launcher"}, {QL_MISSING, 404, "not-found"},   {QL_DENIED, 403, "denied"},
                {QL_DISK, 507, "no-space"},      {QL_NOMEM, 503, "out-of-memory"}, {QL_IO, 500, "io-error"}};
    char detail[1024];
    snprintf(detail, sizeof detail, "%s", ql_last_error());
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].status == status) {
            api_problem(r, rows[i].http, rows[i].code, ql_status_exit_code(status), detail);
            return;
        }
    api_problem(r, 500, "internal", ql_status_exit_code(status), detail);
}

void api_json(response *r, int status, json_t *document) {
    char *text;
    ql_status result = document ? ql_json_text(document, JSON_COMPACT, &text) : QL_NOMEM;
    json_decref(document);
    if (result == QL_OK) answer_text(r, status, "application/json", text);
    else api_problem(r, 503, "out-of-memory", ql_status_exit_code(QL_NOMEM), "no memory for the answer");
}

/* ---- arguments ---------------------------------------------------------------------------------------------------------------- */

const char *api_argument(const request *q, const char *name) {
    for (int i = 0; i < q->arguments; i++)
        if (strcmp(q->argument[i].name, name) == 0) return q->argument[i].value;
    return NULL;
}

ql_status api_number(const request *q, const char *name, int64_t least, int64_t most, int64_t *value) {
    const char *text = api_argument(q, name);
    char *end;
    if (!text) return QL_OK;
    size_t digits = strspn(text, "0123456789");
    long long number = digits > 0 && digits < 19 ? strtoll(text, &end, 10) : -1;
    if (number < least || number > most || text[digits])
        return ql_fail(QL_USAGE, "request: %s=%.40s: expected a whole number from %lld to %lld", name, text,
                       (long long)least, (long long)most);
    *value = number;
    return QL_OK;
}

static ql_status check_arguments(const request *q, const char *allowed) {
    for (int i = 0; i < q->arguments; i++) {
        char word[40];
        snprintf(word, sizeof word, " %.30s ", q->argument[i].name);
        if (strlen(q->argument[i].name) > 30 || !strstr(allowed, word))
            return ql_fail(QL_USAGE, "request: unknown argument \"%.40s\"; there are:%s", q->argument[i].name,
                           *allowed ? allowed : " none");
    }
    return QL_OK;
}

/* ---- the small ones -------------------------------------------------------------------------------------------------------------- */

static void copy_text(response *r, const char *type, const void *text, size_t size) {
    char *copy = ql_malloc(size + 1);
    if (!copy) {
        api_problem(r, 503, "out-of-memory", ql_status_exit_code(QL_NOMEM), "no memory for the answer");
        return;
    }
    memcpy(copy, text, size);
    copy[size] = 0;
    *r = (response){.status = 200, .type = type, .body = copy, .size = size, .next = -1};
}

static void get_health(service *d, const request *q, const char *id, response *r) {
    (void)d, (void)q, (void)id;
    copy_text(r, "text/plain; charset=utf-8", "ok\n", 3);
}

static void get_ready(service *d, const request *q, const char *id, response *r) {
    (void)q, (void)id;
    if (d->stopping) api_problem(r, 503, "stopping", ql_status_exit_code(QL_DEVICE), "the daemon is stopping");
    else copy_text(r, "text/plain; charset=utf-8", "ready\n", 6);
}

static void get_version(service *d, const request *q, const char *id, response *r) {
    (void)d, (void)q, (void)id;
    api_json(r, 200, json_pack("{s:s, s:i}", "version", ql_version(), "api", 1));
}

static void get_metrics(service *d, const request *q, const char *id, response *r) {
    char *text;
    (void)q, (void)id;
    ql_status status = metrics_text(d, &text);
    if (status == QL_OK) answer_text(r, 200, "text/plain; version=0.0.4; charset=utf-8", text);
    else api_fail(r, status);
}

static void get_openapi(service *d, const request *q, const char *id, response *r) {
    (void)d, (void)q, (void)id;
    copy_text(r, "application/json", openapi_json, openapi_json_size);
}

static void get_page(service *d, const request *q, const char *id, response *r) {
    (void)d, (void)q, (void)id;
    copy_text(r, "text/html; charset=utf-8", page_html, page_html_size);
}

/* ---- routes ----------------------------------------------------------------------------------------------------------------------- */

/* {id} stands for one; arguments: those that the query may have, each between blanks. */
static const struct {
    const char *method, *path, *arguments;
    void (*answer)(service *d, const request *q, const char *id, response *r);
} routes[] = {
    {"GET", "/", "", get_page},
    {"GET", "/healthz", "", get_health},
    {"GET", "/readyz", "", get_ready},
    {"GET", "/metrics", "", get_metrics},
    {"GET", "/v1/version", "", get_version},
    {"GET", "/v1/openapi.json", "", get_openapi},
    {"POST", "/v1/jobs", "", api_submit},
    {"GET", "/v1/jobs", " state after limit ", api_list},
    {"GET", "/v1/jobs/{id}", "", api_show},
    {"DELETE", "/v1/jobs/{id}", "", api_remove},
    {"GET", "/v1/jobs/{id}/events", " after wait ", api_events},
    {"GET", "/v1/jobs/{id}/log", " attempt offset wait ", api_log},
    {"GET", "/v1/jobs/{id}/report", "", api_report},
    {"GET", "/v1/jobs/{id}/report.html", "", api_report_page},
    {"POST", "/v1/jobs/{id}/cancel", "", api_act},
    {"POST", "/v1/jobs/{id}/pause", "", api_act},
    {"POST", "/v1/jobs/{id}/resume", "", api_act},
    {"POST", "/v1/jobs/{id}/retry", "", api_act},
};

/* Does the path have that form?  The id goes to `id`. */
static bool matches(const char *form, const char *path, char id[JOB_ID_LENGTH + 1]) {
    const char *hole = strstr(form, "{id}");
    size_t before = hole ? (size_t)(hole - form) : 0;
    if (!hole) return strcmp(form, path) == 0;
    if (strncmp(form, path, before) != 0 || strlen(path) < before + JOB_ID_LENGTH) return false;
    memcpy(id, path + before, JOB_ID_LENGTH);
    id[JOB_ID_LENGTH] = 0;
    return job_is_id(id) && strcmp(path + before + JOB_ID_LENGTH, hole + 4) == 0;
}

static void route(service *d, const request *q, response *r) {
    char id[JOB_ID_LENGTH + 1] = "", detail[256];
    bool other_method = false;
    for (size_t i = 0; i < sizeof routes / sizeof routes[0]; i++) {
        if (!matches(routes[i].path, q->path, id)) continue;
        bool head = strcmp(q->method, "HEAD") == 0 && strcmp(routes[i].method, "GET") == 0;
        if (!head && strcmp(routes[i].method, q->method) != 0) {
            other_method = true;
            continue;
        }
        ql_status status = check_arguments(q, routes[i].arguments);
        if (status == QL_OK) routes[i].answer(d, q, id, r);
        else api_fail(r, status);
        return;
    }
    snprintf(detail, sizeof detail, "there is no %.16s %.120s; /v1/openapi.json lists what there is", q->method,
             q->path);
    if (other_method) api_problem(r, 405, "method-not-allowed", ql_status_exit_code(QL_USAGE), detail);
    else api_problem(r, 404, "not-found", ql_status_exit_code(QL_MISSING), detail);
}

void api_answer(service *d, const request *q, response *r) {
    *r = (response){.next = -1};
    route(d, q, r);
    if (r->wait_path[0]) return;
    d->requests[r->status / 100 % 6]++;
}
