/* The roofline picture: speed over arithmetic intensity, both logarithmic, beneath the copy bandwidth and the dense product that were
 * measured in the same run.  Full marks are ours, hollow ones the peer's time for the same work.  One SVG that stands alone, in the
 * colours of the reader's light or dark page.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "calib/bench/bench.h"
#include "host/file.h"

enum { WIDTH = 960, HEIGHT = 560, LEFT = 84, RIGHT = 740, TOP = 84, BOTTOM = 490, LABELS = 12, COLOURS = 8 };

/* Of middle lightness: they stand out from white and from black. */
static const char *const colours[COLOURS] = {"#2f81f7", "#db6d28", "#2da44e", "#a371f7",
                                             "#e5534b", "#1b9aaa", "#bf8700", "#d2569a"};

static const char head[] = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" "
                           "font-family=\"sans-serif\" "
                           "font-size=\"13\">\n"
                           "<style>.page{fill:#fff}text{fill:#1f2328}.roof,.axis{stroke:#1f2328;fill:none}.grid{stroke:"
                           "#d8dee4}.faint{fill:#59636e}\n"
                           "@media(prefers-color-scheme:dark){.page{fill:#0d1117}text{fill:#e6edf3}.roof,.axis{stroke:#"
                           "e6edf3}.grid{stroke:#30363d}"
                           ".faint{fill:#9198a1}}</style>\n"
                           "<rect class=\"page\" width=\"%d\" height=\"%d\"/>\n";

/* Decades of both axes. */
typedef struct frame {
    double x0, x1, y0, y1; /* log10 */
} frame;

static double across(const frame *f, double intensity) {
    return LEFT + (RIGHT - LEFT) * (log10(intensity) - f->x0) / (f->x1 - f->x0);
}

static double up(const frame *f, double flops) {
    return BOTTOM - (BOTTOM - TOP) * (log10(flops) - f->y0) / (f->y1 - f->y0);
}

static bool is_drawn(const bench_result *r) { return r->flops > 0 && r->bytes > 0; }

static frame frame_for(const bench_roofs *roofs, const bench_result *results, int64_t count) {
    double ridge = roofs->dense / roofs->copy, x0 = ridge, x1 = ridge, y0 = roofs->dense, y1 = roofs->dense;
    for (int64_t i = 0; i < count; i++) {
        const bench_result *r = &results[i];
        if (!is_drawn(r)) continue;
        double x = r->flops / r->bytes, y = r->flops / r->own.median;
        double other = r->peer.repeats ? r->flops / r->peer.median : y;
        x0 = fmin(x0, x), x1 = fmax(x1, x), y0 = fmin(y0, fmin(y, other)), y1 = fmax(y1, fmax(y, other));
    }
    return (frame){floor(log10(x0) - 0.2), ceil(log10(x1) + 0.2), floor(log10(y0) - 0.1), ceil(log10(y1) + 0.1)};
}

/* "100 GFLOP/s" from 1e11. */
static void write_speed(char text[32], double flops) {
    static const char prefixes[] = " kMGTPE";
    int p = 0;
    for (; flops >= 999.5 && prefixes[p + 1]; p++) flops /= 1000;
    snprintf(text, 32, "%.0f %cFLOP/s", flops, prefixes[p]);
}

static void draw_axes(FILE *out, const frame *f) {
    char text[32];
    for (double x = f->x0; x <= f->x1; x++) {
        double at = across(f, pow(10, x));
        fprintf(out,
                "<path class=\"grid\" d=\"M%.1f %dV%d\"/><text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%g</text>\n",
                at, TOP, BOTTOM, at, BOTTOM + 20, pow(10, x));
    }
    for (double y = f->y0; y <= f->y1; y++) {
        double at = up(f, pow(10, y));
        write_speed(text, pow(10, y));
        fprintf(out,
                "<path class=\"grid\" d=\"M%d %.1fH%d\"/><text x=\"%d\" y=\"%.1f\" text-anchor=\"end\" "
                "font-size=\"11\">%s</text>\n",
                LEFT, at, RIGHT, LEFT - 8, at + 4, text);
    }
    fprintf(out, "<path class=\"axis\" d=\"M%d %dV%dH%d\"/>\n", LEFT, TOP, BOTTOM, RIGHT);
    fprintf(
        out,
        "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">arithmetic intensity, FLOP per byte that must move</text>\n",
        (LEFT + RIGHT) / 2, BOTTOM + 44);
}

static void draw_roofs(FILE *out, const frame *f, const bench_roofs *roofs) {
    double left = pow(10, f->x0), right = pow(10, f->x1), ridge = roofs->dense / roofs->copy;
    double low = fmax(pow(10, f->y0), left * roofs->copy); /* where the bandwidth enters the picture */
    fprintf(out, "<path class=\"roof\" stroke-width=\"2\" d=\"M%.1f %.1fL%.1f %.1fH%.1f\"/>\n",
            across(f, low / roofs->copy), up(f, low), across(f, ridge), up(f, roofs->dense), across(f, right));
    fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\" font-size=\"11\">%s %.4g GFLOP/s</text>\n",
            across(f, right) - 4, up(f, roofs->dense) - 6, roofs->plan, 1e-9 * roofs->dense);
}

static void draw_points(FILE *out, const frame *f, const bench_result *r, const char *colour, bool labelled) {
    double x = across(f, r->flops / r->bytes), y = up(f, r->flops / r->own.median);
    bench_shape s = r->how.shape;
    if (r->peer.repeats) {
        double other = up(f, r->flops / r->peer.median);
        fprintf(
            out,
            "<path stroke=\"%s\" stroke-opacity=\"0.5\" d=\"M%.1f %.1fV%.1f\"/><circle cx=\"%.1f\" cy=\"%.1f\" r=\"4\" "
            "class=\"page\" stroke=\"%s\" stroke-width=\"1.5\"/>\n",
            colour, x, y, other, x, other, colour);
    }
    fprintf(out,
            "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"4.5\" fill=\"%s\"><title>%s %lld x %lld x %lld, %s: %.4g us, %.0f %% "
            "of the "
            "roof</title></circle>\n",
            x, y, colour, r->how.op->name, (long long)s.m, (long long)s.n, (long long)s.k, r->plan, 1e6 * r->own.median,
            100 * r->roof);
    if (labelled && s.m)
        fprintf(out, "<text x=\"%.1f\" y=\"%.1f\" font-size=\"10\" class=\"faint\">m=%lld</text>\n", x + 7, y + 3,
                (long long)s.m);
}

/* One colour per operation, in the order in which they come; the legend says it at its first result. */
static void draw_results(FILE *out, const frame *f, const bench_result *results, int64_t count) {
    const bench_op *seen[COLOURS] = {NULL};
    bool peers = false;
    int n = 0;
    for (int64_t i = 0; i < count; i++) {
        const bench_result *r = &results[i];
        int c = 0;
        if (!is_drawn(r)) continue;
        while (c < n && seen[c % COLOURS] != r->how.op) c++;
        if (c == n) {
            seen[n++ % COLOURS] = r->how.op;
            fprintf(out, "<circle cx=\"%d\" cy=\"%d\" r=\"4.5\" fill=\"%s\"/><text x=\"%d\" y=\"%d\">%s</text>\n",
                    RIGHT + 24, TOP + 22 * c, colours[c % COLOURS], RIGHT + 36, TOP + 4 + 22 * c, r->how.op->name);
        }
        draw_points(out, f, r, colours[c % COLOURS], count <= LABELS);
        peers |= r->peer.repeats > 0;
    }
    if (peers)
        fprintf(out,
                "<circle cx=\"%d\" cy=\"%d\" r=\"4\" fill=\"none\" class=\"roof\"/><text x=\"%d\" y=\"%d\" "
                "class=\"faint\">the library's dense product</text>\n",
                RIGHT + 24, TOP + 22 * n, RIGHT + 36, TOP + 4 + 22 * n);
}

static void draw_head(FILE *out, const bench_roofs *roofs, ql_ctx *ctx) {
    char title[160];
    snprintf(title, sizeof title, "%s", ql_ctx_describe(ctx));
    for (char *c = title; *c; c++)
        if (*c == '<' || *c == '&') *c = ' ';
    fprintf(out, head, WIDTH, HEIGHT, WIDTH, HEIGHT, WIDTH, HEIGHT);
    fprintf(out,
            "<text x=\"%d\" y=\"30\" font-size=\"16\">Roofline, measured: copy %.4g GB/s, %s %.4g GFLOP/s</text>\n",
            LEFT, 1e-9 * roofs->copy, roofs->plan, 1e-9 * roofs->dense);
    fprintf(out, "<text x=\"%d\" y=\"52\" class=\"faint\" font-size=\"12\">%.100s, %d threads</text>\n", LEFT, title,
            ql_ctx_threads(ctx));
}

ql_status bench_save_svg(const char *path, const bench_roofs *roofs, ql_ctx *ctx, const bench_result *results,
                         int64_t count) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out) return ql_fail(QL_NOMEM, "%s: no memory for the picture", path);
    const frame f = frame_for(roofs, results, count);
    draw_head(out, roofs, ctx);
    draw_axes(out, &f);
    draw_roofs(out, &f, roofs);
    draw_results(out, &f, results, count);
    fprintf(out, "</svg>\n");
    ql_status status =
        fclose(out) == 0 ? ql_file_save(path, text, size) : ql_fail(QL_NOMEM, "%s: no memory for the picture", path);
    free(text);
    return status;
}
