#include "calib/chart.h"

#include <math.h>

#include "calib/markup.h"

enum {
    WIDTH = 940,
    HEIGHT = 340,
    LEFT = 70,
    RIGHT = 700, /* behind it the legend */
    TOP = 14,
    BOTTOM = 290,
    COLOURS = 8,
    MARKED = 100,   /* values of a line that still get marks */
    LEGEND = 13,    /* names that fit beside the picture */
    MOST_TICKS = 20 /* of an axis */
};

typedef struct frame {
    const chart *chart;
    double x0, x1, y0, y1; /* y: exponents of ten on a logarithmic axis */
} frame;

/* ---- scales ------------------------------------------------------------------------------------------------------------------------- */

static bool is_drawn(const chart *c, double x, double y) { return isfinite(x) && isfinite(y) && (!c->log_y || y > 0); }

/* 1, 2 or 5 times a power of ten: about five steps over the range. */
static double step_of(double range) {
    double power = pow(10, floor(log10(range / 5))), ratio = range / 5 / power;
    return power * (ratio < 1.5 ? 1 : ratio < 3.5 ? 2 : ratio < 7.5 ? 5 : 10);
}

/* Room on both sides; around a single value it is `alone` or a tenth of it. */
static void widen(double *low, double *high, double alone) {
    double size = fmax(fabs(*low), fabs(*high)), range = *high - *low;
    double margin = range > 1e-6 * size ? 0.05 * range : fmax(alone, 0.1 * size);
    *low -= margin;
    *high += margin;
}

static bool find_frame(const chart *c, frame *f) {
    *f = (frame){c, INFINITY, -INFINITY, INFINITY, -INFINITY};
    for (int s = 0; s < c->count; s++)
        for (int i = 0; i < c->series[s].count; i++) {
            double x = c->series[s].x[i], y = c->series[s].y[i];
            if (!is_drawn(c, x, y)) continue;
            if (c->log_y) y = log10(y);
            f->x0 = fmin(f->x0, x), f->x1 = fmax(f->x1, x);
            f->y0 = fmin(f->y0, y), f->y1 = fmax(f->y1, y);
        }
    if (!(f->x0 <= f->x1)) return false;
    widen(&f->x0, &f->x1, 0.5);
    widen(&f->y0, &f->y1, c->log_y ? 0.3 : 1e-12);
    return true;
}

static double across(const frame *f, double x) { return LEFT + (x - f->x0) / (f->x1 - f->x0) * (RIGHT - LEFT); }

static double up(const frame *f, double y) {
    if (f->chart->log_y) y = log10(y);
    return BOTTOM - (y - f->y0) / (f->y1 - f->y0) * (BOTTOM - TOP);
}

/* ---- axes --------------------------------------------------------------------------------------------------------------------------- */

static void draw_x_axis(FILE *out, const frame *f) {
    double step = step_of(f->x1 - f->x0);
    if (f->chart->whole_x && step < 1) step = 1;
    for (int i = 0; i < MOST_TICKS; i++) {
        double x = (ceil(f->x0 / step) + i) * step, shown = fabs(x) < step / 2 ? 0 : x;
        if (x > f->x1) break;
        markup(out,
               "<path class=\"grid\" d=\"M%.1f %dV%d\"/><text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n",
               across(f, x), TOP, BOTTOM, across(f, x), BOTTOM + 18, shown);
    }
    markup(out, "<text class=\"faint\" x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", (LEFT + RIGHT) / 2,
           BOTTOM + 40, f->chart->x_title);
}

static void draw_y_tick(FILE *out, const frame *f, double y) {
    markup(out, "<path class=\"grid\" d=\"M%d %.1fH%d\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n",
           LEFT, up(f, y), RIGHT, LEFT - 8, up(f, y) + 4, y);
}

static void draw_y_axis(FILE *out, const frame *f) {
    if (f->chart->log_y) {
        /* Within two decades 2 and 5 are ticks as well; over many, some powers are left out. */
        double range = f->y1 - f->y0, stride = fmax(1, ceil(range / 8));
        for (double e = floor(f->y0); e <= f->y1; e += stride)
            for (int i = 0; i < (range < 2 ? 3 : 1); i++) {
                static const double digits[] = {1, 2, 5};
                double y = digits[i] * pow(10, e);
                if (log10(y) >= f->y0 && log10(y) <= f->y1) draw_y_tick(out, f, y);
            }
    } else {
        double step = step_of(f->y1 - f->y0);
        for (int i = 0; i < MOST_TICKS; i++) {
            double y = (ceil(f->y0 / step) + i) * step;
            if (y <= f->y1) draw_y_tick(out, f, fabs(y) < step / 2 ? 0 : y);
        }
    }
    markup(out, "<text class=\"faint\" transform=\"translate(14 %d) rotate(-90)\" text-anchor=\"middle\">%s</text>\n",
           (TOP + BOTTOM) / 2, f->chart->y_title);
}

/* ---- series ------------------------------------------------------------------------------------------------------------------------- */

/* Colour alone does not tell: circle, square, triangle, diamond. */
static void draw_mark(FILE *out, int series, double x, double y) {
    switch (series % 4) {
    case 0: markup(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\">", x, y); break;
    case 1: markup(out, "<rect x=\"%.1f\" y=\"%.1f\" width=\"6\" height=\"6\">", x - 3, y - 3); break;
    case 2: markup(out, "<path d=\"M%.1f %.1fl4 7h-8z\">", x, y - 4.5); break;
    default: markup(out, "<path d=\"M%.1f %.1fl4.5 4.5l-4.5 4.5l-4.5 -4.5z\">", x, y - 4.5);
    }
}

static void end_mark(FILE *out, int series) {
    fputs(series % 4 == 0 ? "</circle>" : series % 4 == 1 ? "</rect>" : "</path>", out);
}

static void draw_line(FILE *out, const frame *f, const chart_series *s) {
    const char *before = "M";
    double x_last = NAN, y_last = NAN;
    markup(out, "<path class=\"line%s\" d=\"", s->style == CHART_STEPS ? " dash" : "");
    for (int i = 0; i < s->count; i++) {
        bool drawn = is_drawn(f->chart, s->x[i], s->y[i]);
        double x = across(f, s->x[i]), y = drawn ? up(f, s->y[i]) : NAN;
        if (drawn && s->style == CHART_STEPS && isfinite(x_last)) markup(out, "H%.1fV%.1f", x, y);
        else if (drawn) markup(out, "%s%.1f %.1f", before, x, y);
        before = drawn ? "L" : "M";
        if (drawn) x_last = x, y_last = y;
    }
    if (s->style == CHART_STEPS && isfinite(y_last)) markup(out, "H%d", RIGHT);
    fputs("\"/>\n", out);
}

static void draw_dots(FILE *out, const frame *f, const chart_series *s, int number) {
    for (int i = 0; i < s->count; i++) {
        if (!is_drawn(f->chart, s->x[i], s->y[i])) continue;
        double x = across(f, s->x[i]), y = up(f, s->y[i]);
        draw_mark(out, number, x, y);
        markup(out, "<title>%s: %g, %.4g</title>", s->name, s->x[i], s->y[i]);
        end_mark(out, number);
        if (f->chart->named)
            markup(out, "<text class=\"name\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>", x, y - 9,
                   x > (LEFT + RIGHT) / 2.0 ? "end" : "start", s->name);
        fputc('\n', out);
    }
}

static void draw_series(FILE *out, const frame *f, const chart_series *s, int number) {
    markup(out, "<g class=\"s%d\"><g class=\"dot\">\n", number % COLOURS);
    if (s->style != CHART_DOTS) draw_line(out, f, s);
    if (s->style == CHART_DOTS || (s->style == CHART_LINE && s->count <= MARKED)) draw_dots(out, f, s, number);
    fputs("</g></g>\n", out);
}

static void draw_legend(FILE *out, const chart *c) {
    for (int i = 0; i < c->count && i < LEGEND; i++) {
        int y = TOP + 8 + 20 * i;
        markup(out, "<g class=\"s%d\"><g class=\"dot\">", i % COLOURS);
        draw_mark(out, i, RIGHT + 18, y);
        end_mark(out, i);
        markup(out, "</g></g><text x=\"%d\" y=\"%d\">%s</text>\n", RIGHT + 30, y + 4, c->series[i].name);
    }
    if (c->count > LEGEND)
        markup(out, "<text class=\"faint\" x=\"%d\" y=\"%d\">and %d more</text>\n", RIGHT + 30, TOP + 12 + 20 * LEGEND,
               c->count - LEGEND);
}

bool chart_draw(FILE *out, const chart *c) {
    frame f;
    if (!find_frame(c, &f)) return false;
    markup(out,
           "<div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"%s\">\n"
           "<svg class=\"chart\" role=\"img\" viewBox=\"0 0 %d %d\"><title>%s</title><desc>%s</desc>\n",
           c->title, WIDTH, HEIGHT, c->title, c->description);
    draw_x_axis(out, &f);
    draw_y_axis(out, &f);
    markup(out, "<path class=\"axis\" d=\"M%d %dV%dH%d\"/>\n", LEFT, TOP, BOTTOM, RIGHT);
    for (int i = 0; i < c->count; i++) draw_series(out, &f, &c->series[i], i);
    if (!c->named) draw_legend(out, c);
    fputs("</svg></div>\n", out);
    return true;
}

void chart_bar(FILE *out, double share) {
    const int width = 160;
    share = share > 0 ? fmin(share, 1) : 0; /* also what is not a number */
    markup(out,
           "<svg aria-hidden=\"true\" width=\"%d\" height=\"12\"><rect class=\"bar\" width=\"%.1f\" height=\"12\" "
           "rx=\"2\"/></svg>",
           width, share * width);
}
