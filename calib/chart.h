/* Pictures of numbers as inline SVG: axes, a legend, and a title and description for those who do not see them.  Colours and text come from
 * the page's style sheet (calib/markup.c).
 *
 *   chart_series error = {.name = "q_proj", .count = layers, .x = layer, .y = relative_error};
 *   if (!chart_draw(out, &(chart){.title = "Error", .x_title = "layer", .log_y = true, .count = 1, .series = &error})) ...
 */
#ifndef CALIB_CHART_H
#define CALIB_CHART_H

#include <stdbool.h>
#include <stdio.h>

typedef enum chart_style {
    CHART_LINE, /* joined, with a mark at every value while they are few */
    CHART_DOTS,
    CHART_STEPS, /* a dashed stair without marks, not in the legend */
} chart_style;

typedef struct chart_series {
    const char *name;
    int count;
    const double *x, *y; /* [count]; what is not finite, or not above 0 on a logarithmic axis, is left out */
    chart_style style;
} chart_series;

typedef struct chart {
    const char *title, *description;
    const char *x_title, *y_title;
    bool log_y;
    bool whole_x; /* x counts something: no ticks between whole numbers */
    bool named;   /* names stand beside the dots instead of in a legend */
    int count;
    const chart_series *series; /* [count]; colours repeat after eight */
} chart;

/* False, and nothing drawn, without a single value. */
bool chart_draw(FILE *out, const chart *c);

/* A bar of `share` (0 .. 1) for a cell of a table, whose number stands beside it: hidden from screen readers. */
void chart_bar(FILE *out, double share);

#endif
