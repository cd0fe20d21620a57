#include "calib/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "host/log.h"
#include "host/mem.h"

/* Redrawing more often than 10 times a second is work for nobody; plain lines are for log files. */
static const double redraw_s = 0.1, plain_s = 30;

enum { RECENT = 8, TEXT_SIZE = 512 };

struct progress {
    progress_style style;
    char job[32];
    int64_t steps, done;
    int fd, width; /* width 0: ask the terminal each time */
    double (*clock)(void);
    double started, printed;
    double finished_at[RECENT]; /* ring: when step count finished_step was reached */
    int64_t finished_step[RECENT];
    int recent;
    bool line_open;
    const phases *watched; /* or NULL */
};

static double monotonic(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

progress_style progress_auto(void) {
    const char *term = getenv("TERM");
    bool redraws = isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
    return redraws ? PROGRESS_BAR : PROGRESS_PLAIN;
}

void progress_duration(char text[DURATION_SIZE], double seconds) {
    if (!(seconds >= 0) || seconds > 1e9) {
        snprintf(text, DURATION_SIZE, "?");
    } else if (seconds < 60) {
        snprintf(text, DURATION_SIZE, "%.1f s", seconds);
    } else {
        unsigned whole = (unsigned)(seconds + 0.5), hours = whole / 3600, minutes = whole / 60 % 60;
        if (hours) snprintf(text, DURATION_SIZE, "%u:%02u:%02u", hours, minutes, whole % 60);
        else snprintf(text, DURATION_SIZE, "%u:%02u", minutes, whole % 60);
    }
}

/* Seconds per step over the last few that were finished; 0 while unknown. */
static double step_seconds(const progress *p) {
    if (p->recent == 0) return 0;
    int kept = p->recent < RECENT ? p->recent : RECENT;
    int last = (p->recent - 1) % RECENT, first = (p->recent - kept) % RECENT;
    int64_t steps = p->finished_step[last] - p->finished_step[first];
    return steps > 0 ? (p->finished_at[last] - p->finished_at[first]) / (double)steps : 0;
}

static void mark(progress *p, int64_t done, double now) {
    p->finished_at[p->recent % RECENT] = now;
    p->finished_step[p->recent % RECENT] = done;
    p->recent++;
    p->done = done;
}

/* ---- the three forms -------------------------------------------------------------------------------------------------- */

static void put(const progress *p, const char *text, size_t length) {
    if (write(p->fd, text, length) < 0) return; /* progress that nobody sees is no failure */
}

static void describe(const progress *p, const char *what, char text[TEXT_SIZE]) {
    double each = step_seconds(p);
    char per_step[DURATION_SIZE], left[DURATION_SIZE], times[2 * DURATION_SIZE + 32] = "";
    if (each > 0) {
        progress_duration(per_step, each);
        progress_duration(left, each * (double)(p->steps - p->done));
        snprintf(times, sizeof times, ", %s per step, %s left", per_step, left);
    }
    snprintf(text, TEXT_SIZE, "%s: %3lld %% (%lld/%lld)%s, %s", p->job, (long long)(p->done * 100 / p->steps),
             (long long)p->done, (long long)p->steps, times, what);
}

static int terminal_width(const progress *p) {
    struct winsize size;
    if (p->width > 0) return p->width;
    return ioctl(p->fd, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

/* A line as wide as the terminal would wrap, and a wrapped line cannot be redrawn. */
static void draw_bar(progress *p, const char *text) {
    char line[TEXT_SIZE + 16];
    int room = terminal_width(p) - 1;
    int length = snprintf(line, sizeof line, "\r%.*s\033[K", room, text);
    put(p, line, (size_t)length);
    p->line_open = true;
    ql_log_over_line(true);
}

/* ,"device_bytes":N,"phases":{"forward":1.250,...}; nothing where nobody is watched. */
static void describe_phases(const phases *of, char text[TEXT_SIZE]) {
    size_t most = 0;
    int used = 0;
    text[0] = 0;
    if (!of) return;
    for (int i = 0; i < PHASES; i++) most = of->memory[i] > most ? of->memory[i] : most;
    used = snprintf(text, TEXT_SIZE, ",\"device_bytes\":%zu,\"phases\":{", most);
    const char *comma = "";
    for (int i = 0; i < PHASES; i++) {
        if (!(of->seconds[i] > 0)) continue;
        used += snprintf(text + used, TEXT_SIZE - (size_t)used, "%s\"%s\":%.3f", comma, phase_names[i], of->seconds[i]);
        comma = ",";
    }
    snprintf(text + used, TEXT_SIZE - (size_t)used, "}");
}

static void print_json(const progress *p, const char *what, double now) {
    char line[2 * TEXT_SIZE + 256], shown[128], spent[TEXT_SIZE];
    size_t used = 0;
    for (; *what && used + 1 < sizeof shown; what++)
        shown[used++] = *what == '"' || *what == '\\' || (unsigned char)*what < 0x20 ? '?' : *what;
    shown[used] = 0;
    double each = step_seconds(p);
    describe_phases(p->watched, spent);
    int length = snprintf(line, sizeof line,
                          "{\"event\":\"progress\",\"job\":\"%s\",\"done\":%lld,\"steps\":%lld,\"phase\":\"%s\","
                          "\"elapsed_s\":%.3f,\"step_s\":%.3f,\"left_s\":%.3f%s}\n",
                          p->job, (long long)p->done, (long long)p->steps, shown, now - p->started, each,
                          each * (double)(p->steps - p->done), spent);
    put(p, line, (size_t)length);
}

/* ---- interface ---------------------------------------------------------------------------------------------------------- */

ql_status progress_open(progress_style style, const char *job, int64_t steps, progress **out) {
    progress *p = ql_malloc(sizeof *p);
    if (!p) return ql_fail(QL_NOMEM, "no memory for the progress display");
    *p = (progress){.style = style, .steps = steps > 0 ? steps : 1, .fd = STDERR_FILENO, .clock = monotonic};
    snprintf(p->job, sizeof p->job, "%s", job);
    p->started = p->printed = p->clock();
    *out = p;
    return QL_OK;
}

void progress_redirect(progress *p, int fd, int width, double (*clock)(void)) {
    p->fd = fd;
    p->width = width;
    p->clock = clock;
    p->started = p->printed = clock();
}

void progress_watch(progress *p, const phases *of) {
    if (p) p->watched = of;
}

void progress_step(progress *p, int64_t done, const char *what) {
    if (!p) return;
    double now = p->clock();
    bool first = p->recent == 0, advanced = first || done != p->done;
    if (advanced) mark(p, done, now);
    char text[TEXT_SIZE];
    switch (p->style) {
    case PROGRESS_NONE: return;
    case PROGRESS_JSON:
        if (advanced) print_json(p, what, now);
        return;
    case PROGRESS_BAR:
        if (!advanced && now - p->printed < redraw_s) return;
        describe(p, what, text);
        draw_bar(p, text);
        break;
    case PROGRESS_PLAIN:
        if (!first && now - p->printed < plain_s) return;
        describe(p, what, text);
        dprintf(p->fd, "%s\n", text);
        break;
    }
    p->printed = now;
}

void progress_close(progress *p) {
    if (!p) return;
    char elapsed[DURATION_SIZE];
    progress_duration(elapsed, p->clock() - p->started);
    if (p->line_open) put(p, "\r\033[K", 4);
    ql_log_over_line(false);
    if (p->style == PROGRESS_JSON) print_json(p, "end", p->clock());
    else if (p->style != PROGRESS_NONE)
        dprintf(p->fd, "%s: %lld of %lld steps in %s\n", p->job, (long long)p->done, (long long)p->steps, elapsed);
    free(p);
}
