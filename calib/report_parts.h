/* What the pages of one run and of several share. */
#ifndef CALIB_REPORT_PARTS_H
#define CALIB_REPORT_PARTS_H

#include "calib/chart.h"
#include "calib/markup.h"
#include "calib/report_html.h"
#include "calib/report_read.h"

enum { MOST_KINDS = 8 }; /* of modules that are told apart, as many as there are colours */

typedef struct report_sheet {
    const report_run *runs;
    int count;
    ql_arena *arena;
} report_sheet;

const char *report_run_name(const report_run *run);
/* "12.3 MiB", "1.2 GiB"; "70.4 s", "1 h 10 min". */
const char *report_bytes(double bytes, char text[32]);
const char *report_seconds(double seconds, char text[32]);
/* A number of a checked document as a cell: empty where it is absent or null. */
void report_cell(FILE *out, const json_t *object, const char *key, const char *format);

ql_status report_write_run(FILE *out, const report_sheet *sheet);
ql_status report_write_comparison(FILE *out, const report_sheet *sheet);

#endif
