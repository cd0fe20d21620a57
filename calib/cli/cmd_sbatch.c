/* qalib sbatch: a batch script for Slurm around "qalib quantize", printed or handed to sbatch. */
#include <errno.h>
#include <spawn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "calib/cli/cli.h"
#include "formats/json.h"
#include "host/log.h"

extern char **environ;

enum { MOST_TASKS = 4096 };

/* Seconds before the end of the time at which Slurm signals: room for the layer that is being made. */
enum { GRACE = 300 };

/* Requeues in a row that commit nothing, after which the job stops: something else is wrong. */
enum { STALLS = 3 };

typedef struct request {
    const cli *args;
    int64_t nodes, gpus, ranks; /* of a node */
    int64_t cpus;               /* of a rank; 0: as the cluster does */
    const char *work;
    bool awaits_calib; /* the token file is named when the script is submitted */
} request;

/* ---- what is asked for -------------------------------------------------------------------------------------------------- */

/* These words stand in #SBATCH lines, where nothing is quoted. */
static ql_status check_word(const cli *args, const char *option) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.,:+-";
    const char *word = cli_value(args, option);
    if (!word || (*word && strspn(word, allowed) == strlen(word))) return QL_OK;
    return ql_fail(QL_USAGE, "--%s \"%s\": expected letters, digits and _.,:+- alone", option, word);
}

/* The recipe is looked at now: a mistake in it should not cost a place in the queue. */
static ql_status check_recipes(const cli *args, ql_arena *arena, bool *needs_data) {
    const char *schemes = cli_value(args, "scheme");
    char *rest = NULL, *name = NULL;
    recipe r;
    if (schemes) {
        QL_TRY(ql_arena_string(arena, schemes, &rest));
        name = strsep(&rest, ",");
    }
    do {
        QL_TRY(cli_recipe(args, name, arena, &r));
        *needs_data = *needs_data || recipe_needs_data(&r);
    } while (rest && (name = strsep(&rest, ",")));
    return QL_OK;
}

static ql_status read_request(const cli *args, ql_arena *arena, request *r) {
    bool needs_data = false;
    *r = (request){.args = args, .nodes = 1};
    QL_TRY(cli_int(args, "nodes", 1, MOST_TASKS, &r->nodes));
    QL_TRY(cli_int(args, "gpus-per-node", 0, MOST_TASKS, &r->gpus));
    r->ranks = r->gpus > 0 ? r->gpus : 1;
    QL_TRY(cli_int(args, "ranks-per-node", 1, MOST_TASKS, &r->ranks));
    QL_TRY(cli_int(args, "cpus-per-task", 1, MOST_TASKS, &r->cpus));
    if (r->gpus > 0 && r->ranks > r->gpus)
        return ql_fail(QL_USAGE, "--ranks-per-node %lld: a rank has a GPU of its own, and there are %lld",
                       (long long)r->ranks, (long long)r->gpus);
    QL_TRY(check_word(args, "time"));
    QL_TRY(check_word(args, "partition"));
    QL_TRY(check_word(args, "account"));
    QL_TRY(check_recipes(args, arena, &needs_data));
    r->awaits_calib = needs_data && !cli_has(args, "calib") && !cli_has(args, "stats") && !cli_has(args, "imatrix");
    if (r->awaits_calib && cli_has(args, "submit"))
        return ql_fail(QL_USAGE, "--submit: this recipe needs data: --calib tokens.h5 or --stats DIR");
    r->work = cli_value(args, "work");
    if (r->work) return QL_OK;
    const char *out = cli_value(args, "output");
    size_t length = strlen(out);
    char *work;
    while (length > 1 && out[length - 1] == '/') length--;
    QL_TRY(ql_arena_format(arena, &work, "%s%.*s.work", *out == '-' ? "./" : "", (int)length, out));
    r->work = work;
    return QL_OK;
}

/* ---- the script --------------------------------------------------------------------------------------------------------- */

/* One word of the shell, whatever it holds: 'it'\''s'. */
static void put_quoted(FILE *out, const char *text) {
    fputc('\'', out);
    for (; *text; text++) {
        if (*text == '\'') fputs("'\\''", out);
        else fputc(*text, out);
    }
    fputc('\'', out);
}

static void put_table(FILE *out, const cli *args, const cli_option *table) {
    for (; table->name; table++) {
        const char *value = cli_value(args, table->name);
        if (!value || strcmp(table->name, "resume") == 0) continue; /* which the script always says */
        fprintf(out, " --%s", table->name);
        if (!table->argument) continue;
        fputc('=', out); /* a value may begin with dashes */
        put_quoted(out, value);
    }
}

static void put_command(FILE *out, const request *r, const char *program) {
    static const cli_option common[] = {{"device", 0, "NAME", false, NULL}, {"threads", 0, "N", false, NULL}, {0}};
    bool many = r->nodes * r->ranks > 1;
    /* Not --kill-on-bad-exit: the first rank that exits with 75 would have the others killed in the middle of their exit. */
    fprintf(out, "srun%s --cpu-bind=cores --wait=120 \\\n    ", many ? " --mpi=pmix" : "");
    put_quoted(out, program);
    fputs(" quantize", out);
    put_table(out, r->args, cli_quantize_options);
    put_table(out, r->args, cli_recipe_options);
    put_table(out, r->args, common);
    if (r->awaits_calib) fputs(" --calib=\"$CALIB\"", out);
    fputs(" --resume\n", out);
}

static void put_directives(FILE *out, const request *r) {
    const char *time = cli_value(r->args, "time");
    fprintf(out, "#!/bin/bash\n#SBATCH --job-name=qalib\n#SBATCH --nodes=%lld\n#SBATCH --ntasks-per-node=%lld\n",
            (long long)r->nodes, (long long)r->ranks);
    if (r->gpus) fprintf(out, "#SBATCH --gpus-per-node=%lld\n", (long long)r->gpus);
    if (r->cpus) fprintf(out, "#SBATCH --cpus-per-task=%lld\n", (long long)r->cpus);
    fprintf(out, "#SBATCH --time=%s\n", time ? time : "04:00:00");
    for (int i = 0; i < 2; i++) {
        static const char *const names[] = {"partition", "account"};
        const char *value = cli_value(r->args, names[i]);
        if (value) fprintf(out, "#SBATCH --%s=%s\n", names[i], value);
    }
    fprintf(out,
            "#SBATCH --requeue\n#SBATCH --open-mode=append\n#SBATCH --signal=USR1@%d\n"
            "#SBATCH --output=%%x-%%j.log\n",
            GRACE);
}

static void put_script(FILE *out, const request *r, const char *program) {
    put_directives(out, r);
    fprintf(out,
            "# Every finished layer is committed.  Slurm sends USR1 to the ranks %d s before the time ends (or to make "
            "room): they\n"
            "# stop with 75, the job goes back into the queue, and --resume goes on behind the last layer, on any "
            "number of ranks.\n",
            GRACE);
    fputs("work=", out);
    put_quoted(out, r->work);
    fputs("\n", out);
    if (r->awaits_calib)
        fputs(": \"${CALIB:?is not set: sbatch --export=ALL,CALIB=tokens.h5 names the calibration rows}\"\n", out);
    fputs("committed() { find \"$work\" -name journal.jsonl -exec cat {} + 2>/dev/null | wc -l; }\n"
          "before=$(committed)\n",
          out);
    put_command(out, r, program);
    fprintf(out,
            "rc=$?\n[ $rc -eq 75 ] || exit $rc\n"
            "if [ \"$(committed)\" -gt \"$before\" ]; then rm -f \"$work.stalled\"; else echo stalled "
            ">>\"$work.stalled\"; fi\n"
            "if [ -e \"$work.stalled\" ] && [ \"$(wc -l <\"$work.stalled\")\" -ge %d ]; then\n"
            "    echo \"qalib: %d times in a row no layer was finished: more time is needed than the job has; not "
            "requeued\" >&2\n"
            "    rm -f \"$work.stalled\"\n    exit 75\nfi\n"
            "scontrol requeue \"$SLURM_JOB_ID\"\nexit 75\n",
            STALLS, STALLS);
}

static ql_status make_script(const request *r, char **text, size_t *size) {
    char program[4096];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0) return ql_fail_errno("/proc/self/exe");
    program[length] = 0;
    FILE *out = open_memstream(text, size);
    if (!out) return ql_fail(QL_NOMEM, "no memory for a script");
    put_script(out, r, program);
    return fclose(out) == 0 ? QL_OK : ql_fail(QL_NOMEM, "no memory for a script");
}

/* ---- submitting --------------------------------------------------------------------------------------------------------- */

/* sbatch with the script on its standard input; its answer is the job's number, "123" or "123;cluster". */
static ql_status start_sbatch(int script, int answer, pid_t *pid) {
    char name[] = "sbatch", short_answer[] = "--parsable";
    char *const argv[] = {name, short_answer, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, script, STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, answer, STDOUT_FILENO);
    int error = posix_spawnp(pid, "sbatch", &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (error == ENOENT)
        return ql_fail(QL_DEVICE, "sbatch is not installed here; without --submit the script is printed");
    return error ? ql_fail(QL_DEVICE, "sbatch cannot be started: %s", strerror(error)) : QL_OK;
}

static ql_status run_sbatch(FILE *script, FILE *answer, char job[64]) {
    pid_t pid;
    int state;
    QL_TRY(start_sbatch(fileno(script), fileno(answer), &pid));
    while (waitpid(pid, &state, 0) < 0)
        if (errno != EINTR) return ql_fail_errno("waiting for sbatch");
    rewind(answer);
    if (!WIFEXITED(state) || WEXITSTATUS(state) != 0 || !fgets(job, 64, answer))
        return ql_fail(QL_DEVICE, "sbatch refused the job (its message stands above)");
    job[strcspn(job, ";\n")] = 0;
    return QL_OK;
}

static ql_status submit(const char *text, size_t size, char job[64]) {
    FILE *script = tmpfile(), *answer = tmpfile();
    ql_status status = script && answer ? QL_OK : ql_fail_errno("a temporary file");
    if (status == QL_OK && (fwrite(text, 1, size, script) != size || fflush(script) != 0))
        status = ql_fail_errno("a temporary file");
    if (status == QL_OK) {
        rewind(script);
        status = run_sbatch(script, answer, job);
    }
    if (script) fclose(script);
    if (answer) fclose(answer);
    return status;
}

/* ---- the command -------------------------------------------------------------------------------------------------------- */

static void print(const cli *args, const char *script, const char *job) {
    if (!cli_has(args, "json")) {
        fputs(job ? job : script, stdout);
        if (job) putchar('\n');
        return;
    }
    json_t *document =
        job ? json_pack("{s:s, s:s}", "job", job, "script", script) : json_pack("{s:s}", "script", script);
    json_dumpf(document, stdout, JSON_INDENT(2));
    putchar('\n');
    json_decref(document);
}

static ql_status run(const cli *args) {
    ql_arena *arena;
    request r;
    char *script = NULL, job[64] = "";
    size_t size = 0;
    bool now = cli_has(args, "submit");
    QL_TRY(ql_arena_open(NULL, &arena));
    ql_status status = read_request(args, arena, &r);
    if (status == QL_OK) status = make_script(&r, &script, &size);
    if (status == QL_OK && now) status = submit(script, size, job);
    if (status == QL_OK) print(args, script, now ? job : NULL);
    if (status == QL_OK && r.awaits_calib)
        ql_log(QL_WARNING,
               "this recipe needs calibration rows: --calib FILE here, or CALIB=FILE when the script is submitted");
    free(script);
    ql_arena_close(arena);
    return status;
}

static const cli_option options[] = {
    {"nodes", 0, "N", false, "of the cluster (default: 1)"},
    {"gpus-per-node", 0, "N", false, "one rank on each (default: 0, the processor)"},
    {"ranks-per-node", 0, "N", false, "fewer than GPUs, or without GPUs (default: one per GPU, or one)"},
    {"cpus-per-task", 0, "N", false, "processors of a rank (default: the cluster's)"},
    {"time", 0, "TIME", false, "of one stay in the queue, as Slurm writes it (default: 04:00:00)"},
    {"partition", 0, "NAME", false, "of the cluster (default: its own)"},
    {"account", 0, "NAME", false, "that pays (default: the user's)"},
    {"submit", 0, NULL, false, "hand the script to sbatch and print the number of the job"},
    {0},
};

const cli_command cmd_sbatch = {
    .name = "sbatch",
    .summary = "print or submit a Slurm batch script that quantizes, stops on signals, requeues and resumes",
    .options = options,
    .shared = cli_recipe_options,
    .passed = cli_quantize_options,
    .details =
        "All options of quantize are passed on. Other directives can be edited in, or given to sbatch on its command "
        "line or in SBATCH_ variables. A job that is requeued 3 times in a row without finishing a layer stops.",
    .examples =
        "qalib sbatch -m MODEL -o OUT --nodes 2 --gpus-per-node 8 --scheme W4A16-GPTQ-g128 --calib tokens.h5 >job.sh\n"
        "qalib sbatch -m MODEL -o OUT --gpus-per-node 1 --bits 4 --calib tokens.h5 --time 01:00:00 --submit",
    .run = run,
};
