#include "calib/markup.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

/* Bytes of a character that a page may not hold, or that turns what stands around it: C1 controls, line separators, directions
 * (U+2028..202E, U+2066..2069), non-characters.  0: none of these. */
static int unwanted(const unsigned char *c) {
    if (c[0] == 0xc2 && c[1] >= 0x80 && c[1] <= 0x9f) return 2;
    if (c[0] == 0xe2 && c[1] == 0x80 && c[2] >= 0xa8 && c[2] <= 0xae) return 3;
    if (c[0] == 0xe2 && c[1] == 0x81 && c[2] >= 0xa6 && c[2] <= 0xa9) return 3;
    if (c[0] == 0xef && c[1] == 0xbf && c[2] >= 0xbe) return 3;
    return 0;
}

/* Control characters are shown as their pictures, U+2400 and on. */
static void put_control(FILE *out, unsigned char c) { fprintf(out, "\xe2\x90%c", c == 0x7f ? 0xa1 : 0x80 + c); }

static void put_escaped(FILE *out, const char *text) {
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        int bytes = unwanted(c);
        if (bytes) fputs(replacement, out), c += bytes - 1;
        else if (*c == '&') fputs("&amp;", out);
        else if (*c == '<') fputs("&lt;", out);
        else if (*c == '>') fputs("&gt;", out);
        else if (*c == '"') fputs("&quot;", out);
        else if (*c == '\'') fputs("&#39;", out);
        else if (*c < 0x20 || *c == 0x7f) put_control(out, *c);
        else fputc(*c, out);
    }
}

void markup(FILE *out, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    while (*format) {
        char one[16] = "";
        if (*format != '%') {
            fputc(*format++, out);
            continue;
        }
        size_t length = 1 + strcspn(format + 1, "%sdefg");
        if (!format[length] || length + 2 > sizeof one) abort(); /* a format is written here, not read */
        memcpy(one, format, length + 1);
        switch (format[length]) {
        case 's': put_escaped(out, va_arg(arguments, const char *)); break;
        case 'd': fprintf(out, one, va_arg(arguments, int)); break;
        case '%': fputc('%', out); break;
        default: fprintf(out, one, va_arg(arguments, double));
        }
        format += length + 1;
    }
    va_end(arguments);
}

/* ---- a page ------------------------------------------------------------------------------------------------------------------------ */

static const char style[] =
    ":root { color-scheme: light dark; --back: #fff; --text: #1b1f24; --faint: #59636e; --line: #d1d9e0; --box: "
    "#f6f8fa;\n"
    "  --mark: #0550ae; --bad: #a40e26; --s0: #0550ae; --s1: #bc4c00; --s2: #116329; --s3: #8250df; --s4: #a40e26;\n"
    "  --s5: #1b7c83; --s6: #7d4e00; --s7: #59636e; }\n"
    "@media (prefers-color-scheme: dark) { :root { --back: #0d1117; --text: #e6edf3; --faint: #9198a1; --line: "
    "#3d444d;\n"
    "  --box: #151b23; --mark: #79c0ff; --bad: #ff9492; --s0: #79c0ff; --s1: #ffa657; --s2: #7ee787; --s3: #d2a8ff;\n"
    "  --s4: #ff9492; --s5: #76e3ea; --s6: #e3b341; --s7: #9198a1; } }\n"
    "* { box-sizing: border-box; }\n"
    "body { margin: 0 auto; max-width: 80rem; padding: 1rem; background: var(--back); color: var(--text);\n"
    "  font: 15px/1.5 system-ui, sans-serif; }\n"
    "h1 { font-size: 1.4rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }\n"
    "h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; } h3 { font-size: .95rem; margin: 1rem 0 .25rem; }\n"
    "p { margin: .4rem 0; max-width: 60rem; } .faint, caption { color: var(--faint); } .bad { color: var(--bad); }\n"
    "table { border-collapse: collapse; } caption { text-align: left; padding-bottom: .25rem; }\n"
    "th, td { text-align: left; padding: .2rem 1rem .2rem 0; border-bottom: 1px solid var(--line); vertical-align: "
    "top; }\n"
    "tbody th { font-weight: normal; } td { overflow-wrap: anywhere; }\n"
    ".scroll { overflow-x: auto; } .scroll th { white-space: nowrap; } .scroll td { overflow-wrap: normal; }\n"
    ".number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }\n"
    "code, pre { font-family: ui-monospace, monospace; font-size: .9em; overflow-wrap: anywhere; }\n"
    "pre { background: var(--box); border: 1px solid var(--line); border-radius: .4rem; padding: .6rem; overflow-x: "
    "auto;\n"
    "  margin: .25rem 0; overflow-wrap: normal; }\n"
    "summary { cursor: pointer; color: var(--mark); margin: .5rem 0; }\n"
    ":focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; }\n"
    "svg.chart { display: block; width: 100%; min-width: 48rem; max-width: 60rem; height: auto; }\n"
    "svg text { fill: var(--text); font: 12px system-ui, sans-serif; } svg .faint { fill: var(--faint); }\n"
    "svg .grid { stroke: var(--line); fill: none; } svg .axis { stroke: var(--faint); fill: none; }\n"
    "svg .bar { fill: var(--mark); } svg .name { paint-order: stroke; stroke: var(--back); stroke-width: 4px; }\n"
    "svg .s0 { --s: var(--s0); } svg .s1 { --s: var(--s1); } svg .s2 { --s: var(--s2); } svg .s3 { --s: var(--s3); }\n"
    "svg .s4 { --s: var(--s4); } svg .s5 { --s: var(--s5); } svg .s6 { --s: var(--s6); } svg .s7 { --s: var(--s7); }\n"
    "svg .dot { fill: var(--s); } svg .line { stroke: var(--s); fill: none; stroke-width: 1.5; }\n"
    "svg .dash { stroke-dasharray: 5 4; stroke: var(--faint); }\n"
    "@media print { body { max-width: none; } svg.chart { min-width: 0; } }\n";

ql_status markup_page(const char *title, ql_status (*write)(FILE *out, const void *what), const void *what,
                      ql_arena *arena, char **text) {
    char *buffer = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&buffer, &size);
    if (!out) return ql_fail(QL_NOMEM, "no memory for a page");
    markup(out,
           "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
           "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
           "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
           "<title>%s</title>\n<style>\n",
           title);
    fputs(style, out);
    fputs("</style>\n</head>\n<body>\n", out);
    ql_status status = write(out, what);
    fputs("</body>\n</html>\n", out);
    bool failed = ferror(out) != 0;
    failed |= fclose(out) != 0;
    if (status == QL_OK && failed) status = ql_fail(QL_NOMEM, "no memory for a page");
    if (status == QL_OK) status = ql_take(arena, size + 1, 1, text);
    if (status == QL_OK) memcpy(*text, buffer, size + 1);
    free(buffer);
    return status;
}
