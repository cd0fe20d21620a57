/* report.html: what report.json holds as one page that needs nothing else, no script and no network; and several runs side by side.
 *
 *   const report_run run = {.name = "OUT", .report = report};       // report was made here, or report_check has looked at it
 *   QL_TRY(report_html(&run, 1, arena, &text));
 *
 * The page is a function of its documents alone: the same ones give the same bytes.
 */
#ifndef CALIB_REPORT_HTML_H
#define CALIB_REPORT_HTML_H

#include <jansson.h>

#include "host/mem.h"

typedef struct report_run {
    const char *name;     /* what to call it; NULL: after its model */
    const json_t *report; /* report.json */
    const json_t *eval;   /* what eval --json said of its output; NULL: nothing */
} report_run;

/* One run: its report.  Several: how they compare, bits per weight against KL divergence first. */
ql_status report_html(const report_run *runs, int count, ql_arena *arena, char **text);

/* The figures of the comparison, as qalib report --json prints them (json_decref); NULL: out of memory. */
json_t *report_figures(const report_run *runs, int count);

#endif
