/* qalib tokenize: text to a token file.  A Python helper (scripts/tokenize.py) runs the tokenizer; what it says is checked here
 * like any other input. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calib/cli/cli.h"
#include "formats/json.h"
#include "formats/tokens.h"
#include "host/file.h"
#include "host/log.h"
#include "host/status.h"

enum { HEADER_SIZE = 1 << 16, MAX_SEQLEN = 1 << 20, MAX_SAMPLES = 1 << 20 };

typedef struct helper {
    pid_t pid;
    int in;
} helper;

typedef struct request {
    const char *tokenizer, *data, *output;
    int64_t seqlen, nsamples, seed;
} request;

/* ---- the helper ------------------------------------------------------------------------------------------------------------ */

/* Installed: libexec beside bin.  Built: the source tree. */
static ql_status find_script(char path[PATH_MAX]) {
    char self[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    self[length > 0 ? length : 0] = 0;
    int used = snprintf(path, PATH_MAX, "%s/../libexec/qalib/tokenize.py", dirname(self));
    if (used < PATH_MAX && access(path, R_OK) == 0) return QL_OK;
    snprintf(path, PATH_MAX, "%s", QALIB_SCRIPTS "/tokenize.py");
    if (access(path, R_OK) == 0) return QL_OK;
    return ql_fail(QL_DEVICE, "tokenize.py is neither in libexec/qalib beside the program nor in %s", QALIB_SCRIPTS);
}

static _Noreturn void become_helper(const char *script, const request *r, int out) {
    char seqlen[24], nsamples[24], seed[24];
    const char *python = getenv("QALIB_PYTHON");
    if (!python || !*python) python = "python3";
    snprintf(seqlen, sizeof seqlen, "%" PRId64, r->seqlen);
    snprintf(nsamples, sizeof nsamples, "%" PRId64, r->nsamples);
    snprintf(seed, sizeof seed, "%" PRId64, r->seed);
    dup2(out, STDOUT_FILENO);
    execlp(python, python, "-I", script, "--tokenizer", r->tokenizer, "--data", r->data, "--seqlen", seqlen,
           "--nsamples", nsamples, "--seed", seed, (char *)NULL);
    dprintf(STDOUT_FILENO,
            "{\"status\": 69, \"error\": \"the Python interpreter (python3, or $QALIB_PYTHON) cannot be run: %s\"}\n",
            strerror(errno));
    _exit(127);
}

static ql_status start_helper(const request *r, helper *h) {
    char script[PATH_MAX];
    int ends[2];
    QL_TRY(find_script(script));
    if (pipe2(ends, O_CLOEXEC) != 0) return ql_fail_errno("no pipe to the tokenizer");
    h->pid = fork();
    if (h->pid == 0) become_helper(script, r, ends[1]);
    close(ends[1]);
    h->in = ends[0];
    if (h->pid > 0) return QL_OK;
    close(ends[0]);
    return ql_fail(QL_IO, "no process for the tokenizer");
}

static void end_helper(const helper *h, bool kill_it) {
    close(h->in);
    if (kill_it) kill(h->pid, SIGTERM);
    while (waitpid(h->pid, NULL, 0) < 0 && errno == EINTR) {}
}

static ql_status receive(const helper *h, void *data, size_t size) {
    for (char *to = data; size > 0;) {
        ssize_t got = read(h->in, to, size);
        if (got < 0 && errno == EINTR) QL_TRY(cli_check_signal());
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            QL_TRY(cli_check_signal());
            return ql_fail(QL_INTERNAL,
                           "the tokenizer's helper ended before its work was done; its messages stand above");
        }
        to += got;
        size -= (size_t)got;
    }
    return QL_OK;
}

static ql_status receive_line(const helper *h, char line[HEADER_SIZE]) {
    for (int i = 0; i < HEADER_SIZE - 1; i++) {
        QL_TRY(receive(h, line + i, 1));
        if (line[i] == '\n') return line[i] = 0, QL_OK;
    }
    return ql_fail(QL_INTERNAL, "the tokenizer's helper does not come to its point");
}

/* ---- what it says ---------------------------------------------------------------------------------------------------------- */

static const char *const place = "tokenize.py";

static ql_status status_of_code(int64_t code) {
    switch (code) {
    case 64: return QL_USAGE;
    case 65: return QL_FORMAT;
    case 66: return QL_MISSING;
    case 69: return QL_DEVICE;
    default: return QL_IO;
    }
}

static ql_status check_refusal(const json_t *header) {
    int64_t code = 0;
    const char *sentence;
    QL_TRY(ql_json_int_or(header, place, "status", 1, 255, &code));
    if (code == 0) return QL_OK;
    QL_TRY(ql_json_string(header, place, "error", &sentence));
    return ql_fail(status_of_code(code), "%s", sentence);
}

static ql_status read_header(const request *r, const json_t *header, token_file *tokens) {
    const json_t *note;
    size_t i;
    QL_TRY(check_refusal(header));
    QL_TRY(ql_json_int(header, place, "n_seq", r->nsamples, r->nsamples, &tokens->n_seq));
    QL_TRY(ql_json_int(header, place, "seq_len", r->seqlen, r->seqlen, &tokens->seq_len));
    QL_TRY(ql_json_int(header, place, "vocab", 1, INT32_MAX, &tokens->vocab));
    json_array_foreach(json_object_get(header, "notes"), i, note) if (json_is_string(note))
        ql_log(QL_WARNING, "%s: %s", r->data, json_string_value(note));
    return QL_OK;
}

static ql_status receive_rows(const helper *h, ql_arena *arena, token_file *tokens) {
    tokens->n_tokens = tokens->n_seq * tokens->seq_len;
    QL_TRY(ql_take(arena, (size_t)tokens->n_tokens, sizeof *tokens->ids, &tokens->ids));
    QL_TRY(ql_take(arena, (size_t)tokens->n_seq + 1, sizeof *tokens->start, &tokens->start));
    for (int64_t row = 0; row <= tokens->n_seq; row++) tokens->start[row] = row * tokens->seq_len;
    return receive(h, tokens->ids, (size_t)tokens->n_tokens * sizeof *tokens->ids);
}

/* *header: for the summary (json_decref), also after a failure. */
static ql_status ask_helper(const request *r, ql_arena *arena, token_file *tokens, json_t **header) {
    helper h;
    char *line;
    QL_TRY(ql_take(arena, HEADER_SIZE, 1, &line));
    QL_TRY(start_helper(r, &h));
    ql_status status = receive_line(&h, line);
    if (status == QL_OK) status = ql_json_parse(place, line, strlen(line), header);
    if (status == QL_OK) status = read_header(r, *header, tokens);
    if (status == QL_OK) status = receive_rows(&h, arena, tokens);
    end_helper(&h, status != QL_OK);
    return status;
}

/* ---- the command ------------------------------------------------------------------------------------------------------------- */

/* What can be said before Python starts. */
static ql_status check_inputs(const request *r, token_file *tokens) {
    ql_source *source;
    QL_TRY(ql_source_open(r->data, NULL, &source));
    ql_source_close(source);
    QL_TRY(tokens_tokenizer_sha256(r->tokenizer, tokens->tokenizer_sha256));
    if (tokens->tokenizer_sha256[0]) return QL_OK;
    return ql_fail(QL_MISSING, "%s: no tokenizer.json and no tokenizer.model", r->tokenizer);
}

static ql_status describe_source(const request *r, ql_arena *arena, char **text) {
    unsigned char sha256[32];
    char hex[65];
    const char *slash = strrchr(r->data, '/');
    QL_TRY(ql_file_sha256(r->data, sha256));
    ql_hex(sha256, sizeof sha256, hex);
    return ql_arena_format(arena, text, "%.200s sha256 %s", slash ? slash + 1 : r->data, hex);
}

static void print_summary(const cli *args, const request *r, const json_t *header) {
    if (cli_has(args, "json")) {
        json_dumpf(header, stdout, JSON_INDENT(2));
        putchar('\n');
        return;
    }
    printf("%s: %lld rows of %lld tokens, chosen among %lld windows of %lld tokens\n", r->output,
           (long long)r->nsamples, (long long)r->seqlen,
           (long long)json_integer_value(json_object_get(header, "windows")),
           (long long)json_integer_value(json_object_get(header, "tokens")));
}

static ql_status tokenize(const cli *args, const request *r, ql_arena *arena, json_t **header) {
    token_file tokens = {.n_seq = 0};
    char *source;
    QL_TRY(check_inputs(r, &tokens));
    QL_TRY(ask_helper(r, arena, &tokens, header));
    QL_TRY(describe_source(r, arena, &source));
    QL_TRY(tokens_write(r->output, &tokens, source, r->seed));
    print_summary(args, r, *header);
    return QL_OK;
}

static ql_status run(const cli *args) {
    request r = {.tokenizer = cli_value(args, "tokenizer"),
                 .data = cli_value(args, "data"),
                 .output = cli_value(args, "output"),
                 .seqlen = 2048,
                 .nsamples = 128};
    ql_arena *arena;
    json_t *header = NULL;
    QL_TRY(cli_int(args, "seqlen", 2, MAX_SEQLEN, &r.seqlen));
    QL_TRY(cli_int(args, "nsamples", 1, MAX_SAMPLES, &r.nsamples));
    QL_TRY(cli_int(args, "seed", 0, INT64_MAX, &r.seed));
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = tokenize(args, &r, arena, &header);
    json_decref(header);
    ql_arena_close(arena);
    return status;
}

static const cli_option options[] = {
    {"tokenizer", 0, "DIR", true, "model directory with tokenizer.json or tokenizer.model"},
    {"data", 0, "FILE", true, "text (UTF-8), or .jsonl with \"text\" or chat \"messages\" in each line"},
    {"seqlen", 0, "N", false, "tokens per row (default 2048)"},
    {"nsamples", 0, "N", false, "rows (default 128)"},
    {"output", 'o', "FILE", true, "the token file (HDF5)"},
    {"seed", 0, "N", false, "chooses among the windows (default 0)"},
    {0},
};

const cli_command cmd_tokenize = {
    .name = "tokenize",
    .summary = "make a token file for calibration or evaluation from text",
    .options = options,
    .details =
        "The text is tokenized once, in its order (documents of a .jsonl each end with the end-of-sequence token), and "
        "cut into windows "
        "that do not overlap. Of these the seed chooses: those whose SHA-256 of \"SEED INDEX\" is smallest, kept in "
        "the order of the text; "
        "so the same call gives the same rows everywhere. Where the tokenizer adds a begin token, every row starts "
        "with it, once. Fewer "
        "windows than --nsamples is an error that says how many there are.\n"
        "Chat messages pass through the tokenizer's template. At most the first 32 MiB are used; CR LF become LF; NUL "
        "bytes and invalid "
        "UTF-8 are errors with their line.\n"
        "The tokenizer itself runs in Python, in an environment of its own that the first use makes in $QALIB_VENV, "
        "else "
        "$XDG_DATA_HOME/qalib/venv, else ~/.local/share/qalib/venv. QALIB_PYTHON names an interpreter to use as it is.",
    .examples = "qalib tokenize --tokenizer MODEL --data book.txt --seqlen 2048 --nsamples 128 -o calib.h5\n"
                "qalib tokenize --tokenizer MODEL --data chats.jsonl --seed 7 -o chats.h5",
    .run = run,
};
