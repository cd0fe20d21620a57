/* qalib tokenize: rows against a tokenizer that a person can follow, and a helper that says anything. */
#include "tests/scratch.h"

#include <sys/stat.h>
#include <unistd.h>

#include "calib/cli/cli.h"
#include "formats/tokens.h"

/* Words with ids of their own; every row starts with <s>. */
static const char tokenizer_json[] =
    "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":["
    "{\"id\":1,\"content\":\"<s>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,"
    "\"special\":true},"
    "{\"id\":2,\"content\":\"</"
    "s>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}],"
    "\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"WhitespaceSplit\"},\"decoder\":null,"
    "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
    "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[{\"Sequence\":{\"id\":\"A\",\"type_id\":0}},{\"Sequence\":{"
    "\"id\":\"B\","
    "\"type_id\":1}}],\"special_tokens\":{\"<s>\":{\"id\":\"<s>\",\"ids\":[1],\"tokens\":[\"<s>\"]}}},"
    "\"model\":{\"type\":\"WordLevel\",\"unk_token\":\"?\",\"vocab\":{\"?\":0,\"<s>\":1,\"</"
    "s>\":2,\"a\":3,\"b\":4,\"c\":5,\"d\":6,"
    "\"e\":7}}}";
static const char config_json[] =
    "{\"bos_token\": \"<s>\", \"eos_token\": {\"content\": \"</s>\"},"
    " \"chat_template\": \"{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}\"}";

static void put(void **state, const char *name, const char *text) {
    scratch_write(scratch_path(state, name), text, strlen(text));
}

static int tokenize(void **state, const char *data, const char *seqlen, const char *nsamples, const char *seed) {
    static const cli_command *const commands[] = {&cmd_tokenize, NULL};
    char out[4096], in[4096];
    snprintf(out, sizeof out, "%s/tokens.h5", (const char *)*state);
    snprintf(in, sizeof in, "%s/%s", (const char *)*state, data);
    const char *words[] = {"qalib",      "tokenize", "--tokenizer", *state, "--data", in,  "--seqlen", seqlen,
                           "--nsamples", nsamples,   "--seed",      seed,   "-o",     out, NULL};
    unlink(out);
    return cli_main(commands, 14, (char *const *)(uintptr_t)words);
}

static void expect_rows(void **state, int rows, int length, const int32_t *expected) {
    ql_arena *arena;
    token_file tokens;
    assert_ok(ql_arena_open(NULL, &arena));
    assert_ok(tokens_read(scratch_path(state, "tokens.h5"), arena, &tokens));
    assert_int_equal(tokens.n_seq, rows);
    assert_int_equal(tokens.seq_len, length);
    assert_int_equal(tokens.vocab, 8);
    assert_memory_equal(tokens.ids, expected, (size_t)(rows * length) * sizeof *expected);
    ql_arena_close(arena);
}

static void expect_failure(void **state, const char *data, int code, const char *words) {
    assert_int_equal(tokenize(state, data, "4", "2", "0"), code);
    assert_false(ql_path_exists(scratch_path(state, "tokens.h5")));
    if (!strstr(ql_last_error(), words)) fail_msg("\"%s\" does not say \"%s\"", ql_last_error(), words);
}

/* ---- with the real package -------------------------------------------------------------------------------------------------- */

static bool has_environment(void) {
    char path[4096];
    const char *own = getenv("QALIB_VENV"), *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    if (own) snprintf(path, sizeof path, "%s/ready", own);
    else if (data) snprintf(path, sizeof path, "%s/qalib/venv/ready", data);
    else snprintf(path, sizeof path, "%s/.local/share/qalib/venv/ready", home ? home : "");
    if (ql_path_exists(path)) return true;
    print_message("skipped: no Python environment yet; scripts/tokenize.py --setup makes it\n");
    return false;
}

static void put_tokenizer(void **state) {
    put(state, "tokenizer.json", tokenizer_json);
    put(state, "tokenizer_config.json", config_json);
}

static void windows_cover_the_text_in_order(void **state) {
    if (!has_environment()) skip();
    static const int32_t all[] = {1, 3, 4, 5, 1, 6, 7, 3, 1, 4, 5, 6};
    put_tokenizer(state);
    put(state, "text.txt",
        "\xef\xbb\xbf"
        "a b\r\nc d e\n\na b c d e a\n"); /* the last two tokens fill no window */
    assert_int_equal(tokenize(state, "text.txt", "4", "3", "9"), 0);
    expect_rows(state, 3, 4, all);
}

static void a_seed_always_chooses_the_same(void **state) {
    if (!has_environment()) skip();
    /* SHA-256 of "5 0" ... "5 4" begins with f288, 194f, e99e, 3918, 55a6; the two smallest stay. */
    static const int32_t seed_5[] = {1, 4, 4, 4, 1, 6, 6, 6};
    static const int32_t seed_6[] = {1, 4, 4, 4, 1, 7, 7, 7};
    put_tokenizer(state);
    put(state, "text.txt", "a a a b b b c c c d d d e e e");
    for (int again = 0; again < 2; again++) {
        assert_int_equal(tokenize(state, "text.txt", "4", "2", "5"), 0);
        expect_rows(state, 2, 4, seed_5);
    }
    assert_int_equal(tokenize(state, "text.txt", "4", "2", "6"), 0);
    expect_rows(state, 2, 4, seed_6);
}

static void documents_end_with_their_token(void **state) {
    if (!has_environment()) skip();
    static const int32_t texts[] = {1, 3, 2, 4, 1, 5, 2, 6};
    static const int32_t chats[] = {1, 3, 4, 5, 1, 6, 2, 7};
    put_tokenizer(state);
    put(state, "texts.jsonl", "{\"text\": \"a\"}\n\n{\"text\": \"b c\"}\n{\"text\": \" \"}\n{\"text\": \"d\"}\n");
    assert_int_equal(tokenize(state, "texts.jsonl", "4", "2", "0"), 0);
    expect_rows(state, 2, 4, texts);
    put(state, "chats.jsonl",
        "{\"messages\": [{\"role\": \"a\", \"content\": \"b\"}, {\"role\": \"c\", \"content\": \"d\"}]}\n{\"text\": "
        "\"e\"}\n");
    assert_int_equal(tokenize(state, "chats.jsonl", "4", "2", "0"), 0);
    expect_rows(state, 2, 4, chats);
}

static void bad_text_is_refused(void **state) {
    if (!has_environment()) skip();
    put_tokenizer(state);
    static const struct {
        const char *name, *text, *words;
    } cases[] = {
        {"short.txt", "a b c d e", "5 tokens make 1 rows of 4, 2 were asked for"},
        {"empty.txt", "", "holds no text"},
        {"blank.txt", " \n\r\n ", "holds no text"},
        {"latin.txt", "a\nb\xe9\n", "line 2: not UTF-8 at byte 3"},
        {"array.jsonl", "{\"text\": \"a\"}\n[1]\n", "line 2: has neither"},
        {"broken.jsonl", "{\"text\": \n", "line 1: "},
        {"number.jsonl", "{\"text\": 7}\n", "line 1: has neither"},
        {"role.jsonl", "{\"messages\": [{\"role\": {}}, 3]}\n", "make 0 rows"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put(state, cases[i].name, cases[i].text);
        expect_failure(state, cases[i].name, 65, cases[i].words);
    }
    scratch_write(scratch_path(state, "nul.txt"), "a\n\0b", 4);
    expect_failure(state, "nul.txt", 65, "line 2: a NUL byte");
    put(state, "tokenizer.json", "{\"version\": 1");
    put(state, "text.txt", "a b c d e");
    expect_failure(state, "text.txt", 65, "tokenizer.json");
}

/* ---- with a helper of our own: what it says is checked ------------------------------------------------------------------------- */

static void put_helper(void **state, const char *script) {
    char path[4096];
    snprintf(path, sizeof path, "%s/python", (const char *)*state);
    scratch_write(path, script, strlen(script));
    assert_int_equal(chmod(path, 0700), 0);
    setenv("QALIB_PYTHON", path, 1);
}

static void the_helper_is_not_trusted(void **state) {
#define HEADER "#!/bin/sh\necho '{\"n_seq\": 2, \"seq_len\": 4, \"vocab\": 8, \"notes\": [\"a note\", 3]}'\n"
    static const struct {
        const char *script;
        int code;
        const char *words;
    } cases[] = {
        {"#!/bin/sh\nexit 3\n", 70, "ended before its work was done"},
        {"#!/bin/sh\nkill -9 $$\n", 70, "ended before its work was done"},
        {"#!/bin/sh\necho hello\n", 65, "tokenize.py"},
        {"#!/bin/sh\necho '{\"status\": 66, \"error\": \"gone\"}'\n", 66, "gone"},
        {"#!/bin/sh\necho '{\"n_seq\": 1, \"seq_len\": 4, \"vocab\": 8}'\n", 65, "n_seq"},
        {"#!/bin/sh\necho '{\"n_seq\": 2, \"seq_len\": 4, \"vocab\": 0}'\n", 65, "vocab"},
        {HEADER "printf '\\003\\000\\000\\000'\n", 70, "ended before its work was done"},
        {HEADER "head -c 32 /dev/zero | tr '\\000' '\\010'\n", 65, "row 0, position 0: token 134744072"},
        {"#!/bin/sh\nhead -c 100000 /dev/zero\n", 70, "does not come to its point"},
    };
    put_tokenizer(state);
    put(state, "text.txt", "a b c d e");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        put_helper(state, cases[i].script);
        expect_failure(state, "text.txt", cases[i].code, cases[i].words);
    }
    setenv("QALIB_PYTHON", scratch_path(state, "none"), 1);
    expect_failure(state, "text.txt", 69, "cannot be run");
    put_helper(state, HEADER "head -c 32 /dev/zero\n");
    assert_int_equal(tokenize(state, "text.txt", "4", "2", "0"), 0);
    expect_rows(state, 2, 4, (int32_t[8]){0});
    unsetenv("QALIB_PYTHON");
}

static void missing_inputs_are_named(void **state) {
    put(state, "text.txt", "a");
    expect_failure(state, "text.txt", 66, "no tokenizer.json");
    put_tokenizer(state);
    expect_failure(state, "none.txt", 66, "none.txt");
    expect_failure(state, ".", 65, "not a regular file");
    assert_int_equal(tokenize(state, "text.txt", "1", "2", "0"), 64);
}

int main(void) {
    unsetenv("QALIB_PYTHON");
    const struct CMUnitTest tests[] = {
        scratch_test(windows_cover_the_text_in_order), scratch_test(a_seed_always_chooses_the_same),
        scratch_test(documents_end_with_their_token),  scratch_test(bad_text_is_refused),
        scratch_test(the_helper_is_not_trusted),       scratch_test(missing_inputs_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
