/* Any bytes as report.json.  What is accepted must become a page in which every element and attribute is one that the program writes. */
#include <string.h>

#include "calib/report_html.h"
#include "calib/report_read.h"
#include "formats/json.h"
#include "tests/fuzz/input.h"

static bool is_known(const char *word, size_t length, const char *const known[]) {
    for (; *known; known++)
        if (strlen(*known) == length && strncmp(*known, word, length) == 0) return true;
    return false;
}

/* One tag from behind its '<'; returns where it ends. */
static const char *check_tag(const char *at) {
    static const char *const elements[] = {
        "!doctype", "html",  "head",    "meta",  "title", "style", "body",    "header",  "h1",    "h2",  "h3",   "p",
        "main",     "table", "caption", "tbody", "tr",    "th",    "td",      "div",     "thead", "svg", "desc", "path",
        "text",     "g",     "circle",  "rect",  "code",  "pre",   "details", "summary", "ul",    "li",  NULL};
    static const char *const attributes[] = {
        "html",     "lang", "charset",    "name",        "content", "http-equiv",  "class",     "id", "scope",
        "tabindex", "role", "aria-label", "aria-hidden", "viewBox", "d",           "x",         "y",  "r",
        "cx",       "cy",   "rx",         "width",       "height",  "text-anchor", "transform", NULL};
    at += *at == '/';
    size_t length = strcspn(at, " >/");
    require(is_known(at, length, elements));
    for (at += length; *at && *at != '>';) {
        if (*at == ' ' || *at == '/') {
            at++;
            continue;
        }
        length = strcspn(at, "= >");
        require(is_known(at, length, attributes));
        at += length;
        if (*at != '=') continue;
        require(at[1] == '"');
        at = strchr(at + 2, '"');
        require(at != NULL);
        at++;
    }
    require(*at == '>');
    return at;
}

static void check_page(const char *page) {
    const char *style = strstr(page, "</style>");
    require(style != NULL);
    for (const char *at = style; *at; at++) {
        require((unsigned char)*at >= 0x20 || *at == '\n');
        if (*at == '<') at = check_tag(at + 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ql_arena *host;
    json_t *report;
    char *page;
    if (ql_json_parse("report.json", (const char *)data, size, &report) != QL_OK) return 0;
    if (report_check(report, "report.json") == QL_OK && ql_arena_open(NULL, &host) == QL_OK) {
        const report_run runs[] = {{.report = report}, {.name = "again", .report = report}};
        for (int count = 1; count <= 2; count++)
            if (report_html(runs, count, host, &page) == QL_OK) check_page(page);
        json_decref(report_figures(runs, 2));
        ql_arena_close(host);
    }
    json_decref(report);
    return 0;
}
