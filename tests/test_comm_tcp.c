/* Ranks that meet over TCP (host/comm_tcp.c): each is a process with torchrun's variables; the test plays the others with plain sockets, from
 * the layout of the bytes alone. */
#include "tests/test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "host/comm_transport.h"

enum { MAGIC = 0x51414c42, MESSAGE = 8192, HELLO = 80, NOTE = 0 };

/* A rank in a process of its own: what it did, and the sentence that it ended with. */
typedef struct rank {
    pid_t pid;
    int pipe;
    int code;
    char text[1024];
} rank;

static int next_port;

static void set(const char *name, long value) {
    char text[24];
    snprintf(text, sizeof text, "%ld", value);
    setenv(name, text, 1);
}

static rank start_rank(int me, int size, int port, double seconds, ql_status (*work)(ql_comm *)) {
    int ends[2];
    rank r = {0};
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    r.pid = fork();
    r.pipe = ends[0];
    if (r.pid > 0) {
        close(ends[1]);
        return r;
    }
    ql_comm *comm = NULL;
    set("RANK", me), set("WORLD_SIZE", size), set("LOCAL_RANK", me), set("LOCAL_WORLD_SIZE", size),
        set("MASTER_PORT", port - 1);
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    setenv("TORCHELASTIC_RUN_ID", "a run", 1);
    ql_status status = ql_comm_open_torchrun(seconds, &comm);
    if (status == QL_OK) status = work(comm);
    if (status != QL_OK && write(ends[1], ql_last_error(), strlen(ql_last_error())) < 0) _exit(1);
    ql_comm_fail(comm, status);
    ql_comm_close(comm);
    _exit(ql_status_exit_code(status));
}

static void end_rank(rank *r) {
    int status;
    size_t used = 0;
    ssize_t got;
    while ((got = read(r->pipe, r->text + used, sizeof r->text - 1 - used)) > 0) used += (size_t)got;
    close(r->pipe);
    assert_int_equal(waitpid(r->pid, &status, 0), r->pid);
    r->code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void assert_ends(rank *r, int code, const char *words) {
    end_rank(r);
    if (r->code != code || !strstr(r->text, words))
        fail_msg("exit code %d, \"%s\"; expected %d, \"%s\"", r->code, r->text, code, words);
}

/* ---- plain sockets ------------------------------------------------------------------------------------------------------------ */

static int connect_to(int port) {
    const struct sockaddr_in at = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < 500; i++) {
        int one = socket(AF_INET, SOCK_STREAM, 0);
        const struct timeval patience = {10, 0};
        setsockopt(one, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        if (connect(one, (const struct sockaddr *)&at, sizeof at) == 0) return one;
        close(one);
        usleep(10000);
    }
    fail_msg("nobody listens at port %d", port);
    return -1;
}

/* magic, size, rank, port, run */
static void make_hello(char bytes[HELLO], uint32_t magic, uint32_t size, uint32_t me, const char *run) {
    const uint32_t head[4] = {magic, size, me, 9};
    memset(bytes, 0, HELLO);
    memcpy(bytes, head, sizeof head);
    snprintf(bytes + sizeof head, HELLO - sizeof head, "%s", run);
}

static void send_bytes(int one, const void *data, size_t size, size_t piece) {
    for (size_t at = 0; at < size; at += piece) {
        size_t now = size - at < piece ? size - at : piece;
        assert_int_equal(send(one, (const char *)data + at, now, MSG_NOSIGNAL), (ssize_t)now);
        if (piece < size) usleep(200);
    }
}

static void receive_bytes(int one, void *data, size_t size) {
    for (size_t at = 0; at < size;) {
        ssize_t got = recv(one, (char *)data + at, size - at, 0);
        assert_true(got > 0);
        at += (size_t)got;
    }
}

static void send_frame(int one, uint32_t number, const void *data, uint32_t size, size_t piece) {
    char whole[16 + 2 * MESSAGE];
    memcpy(whole, (uint32_t[]){number, size}, 8);
    memcpy(whole + 8, data, size);
    send_bytes(one, whole, 8 + size, piece);
}

/* Reads until the other side has nothing more to say, and leaves. */
static void leave(int one) {
    char bytes[4096];
    while (recv(one, bytes, sizeof bytes, 0) > 0) continue;
    close(one);
}

static bool is_sent_away(int one) {
    char byte;
    ssize_t got = recv(one, &byte, 1, 0);
    bool away = got == 0 || (got < 0 && errno == ECONNRESET); /* and not still there */
    close(one);
    return away;
}

/* Rank 1 of two, as far as everyone's addresses. */
static int come_as_rank_1(int port, size_t piece) {
    char hello[HELLO];
    struct sockaddr_in table[2];
    int one = connect_to(port);
    make_hello(hello, MAGIC, 2, 1, "a run");
    send_bytes(one, hello, HELLO, piece);
    receive_bytes(one, table, sizeof table);
    assert_int_equal(ntohs(table[1].sin_port), 9);
    return one;
}

/* ---- what ranks do -------------------------------------------------------------------------------------------------------------- */

/* Messages of many sizes, several on their way at a time. */
static ql_status exchange_many(ql_comm *comm) {
    static const size_t sizes[] = {1, MESSAGE, 5, 4096, MESSAGE - 1, 0, 17};
    int me = ql_comm_rank(comm), ranks = ql_comm_size(comm);
    for (size_t i = 0; i < 70; i++) {
        static char all[4 * MESSAGE];
        size_t begin[QL_RANKS_MAX + 1], size = sizes[i % 7];
        for (int r = 0; r <= ranks; r++) begin[r] = (size_t)r * size;
        memset(all, 0, sizeof all);
        memset(all + begin[me], 1 + me + (int)i, size);
        if (me == 1 && i % 10 == 0) usleep(2000); /* the others' next frames come early */
        QL_TRY(ql_comm_gather(comm, "many", begin, all));
        for (int r = 0; r < ranks; r++)
            for (size_t at = begin[r]; at < begin[r + 1]; at++)
                if (all[at] != (char)(1 + r + (int)i)) return ql_fail(QL_INTERNAL, "byte %zu of step %zu", at, i);
    }
    return QL_OK;
}

static ql_status say_hello(ql_comm *comm) {
    char all[11] = "hello";
    QL_TRY(ql_comm_gather(comm, "words", (size_t[]){0, 5, 10}, all));
    return memcmp(all, "helloworld", 10) == 0 ? QL_OK : ql_fail(QL_INTERNAL, "\"%s\" has come", all);
}

static ql_status do_nothing(ql_comm *comm) {
    (void)comm;
    return QL_OK;
}

/* ---- tests ------------------------------------------------------------------------------------------------------------------------ */

static void ranks_meet_and_talk(void **state) {
    (void)state;
    rank r[4];
    int port = next_port++;
    for (int i = 3; i >= 0; i--) r[i] = start_rank(i, 4, port, 20, exchange_many); /* the listener comes last */
    for (int i = 0; i < 4; i++) assert_ends(&r[i], 0, "");
}

static void bytes_that_come_one_by_one(void **state) {
    (void)state;
    int port = next_port++;
    char head[8], body[5], end = 0;
    rank r = start_rank(0, 2, port, 20, say_hello);
    int one = come_as_rank_1(port, 1);
    receive_bytes(one, head, sizeof head);
    receive_bytes(one, body, sizeof body);
    assert_memory_equal(head, ((uint32_t[]){1, 5}), 8);
    assert_memory_equal(body, "hello", 5);
    send_frame(one, 2, &end, 1, 1); /* early */
    send_frame(one, 1, "world", 5, 1);
    leave(one);
    assert_ends(&r, 0, "");
}

static void strangers_are_sent_away(void **state) {
    (void)state;
    int port = next_port++, first;
    static const struct {
        uint32_t magic, size, me;
        const char *run;
    } wrong[] = {{0x20544547, 3, 1, "a run"}, {MAGIC, 2, 1, "a run"}, {MAGIC, 4, 1, "a run"},
                 {MAGIC, 3, 0, "a run"},      {MAGIC, 3, 3, "a run"}, {MAGIC, 3, UINT32_MAX, "a run"},
                 {MAGIC, 3, 1, "another run"}};
    char hello[HELLO];
    rank r = start_rank(0, 3, port, 20, do_nothing), two;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        int one = connect_to(port);
        make_hello(hello, wrong[i].magic, wrong[i].size, wrong[i].me, wrong[i].run);
        send_bytes(one, hello, HELLO, HELLO);
        assert_true(is_sent_away(one));
    }
    int leaver = connect_to(port); /* in the middle of its hello */
    send_bytes(leaver, hello, 10, 10);
    close(leaver);
    make_hello(hello, MAGIC, 3, 1, "a run");
    first = connect_to(port);
    send_bytes(first, hello, HELLO, HELLO);
    int second = connect_to(port); /* the same rank once more */
    send_bytes(second, hello, HELLO, HELLO);
    assert_true(is_sent_away(second));
    close(first); /* and this rank 1 is gone before the work begins */
    two = start_rank(2, 3, port, 1, do_nothing);
    end_rank(&r);
    end_rank(&two);
    assert_int_equal(r.code, 0); /* do_nothing does; the end of the job is where it is missed */
    assert_int_equal(two.code, 75);
}

static void half_a_hello_is_not_waited_for(void **state) {
    (void)state;
    int port = next_port++;
    char hello[HELLO];
    rank r = start_rank(0, 2, port, 0.5, do_nothing);
    int one = connect_to(port);
    make_hello(hello, MAGIC, 2, 1, "a run");
    send_bytes(one, hello, HELLO / 2, HELLO);
    leave(one);
    assert_ends(&r, 75, "rank 1 has not come to 127.0.0.1");
}

static void a_port_in_use_is_said(void **state) {
    (void)state;
    int port = next_port++, one = socket(AF_INET, SOCK_STREAM, 0);
    const struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    assert_int_equal(bind(one, (const struct sockaddr *)&at, sizeof at), 0);
    assert_int_equal(listen(one, 1), 0);
    rank r = start_rank(0, 2, port, 5, do_nothing);
    assert_ends(&r, 69, "rank 0 cannot listen at port");
    close(one);
}

static void nobody_listens(void **state) {
    (void)state;
    rank r = start_rank(1, 2, next_port++, 0.3, do_nothing);
    assert_ends(&r, 75, "rank 0 has not answered at port");
}

/* Rank 0's first step meets a frame that does not fit. */
static void assert_refused_frame(uint32_t number, uint32_t size, int code, const char *words) {
    static char data[2 * MESSAGE];
    int port = next_port++;
    rank r = start_rank(0, 2, port, 20, say_hello);
    int one = come_as_rank_1(port, HELLO);
    send_frame(one, number, data, size, 2 * MESSAGE);
    leave(one);
    assert_ends(&r, code, words);
}

static void frames_that_do_not_fit_are_refused(void **state) {
    (void)state;
    assert_refused_frame(1, 4, 70, "5 bytes expected of rank 1, which sends 4");
    assert_refused_frame(1, MESSAGE + 1, 70, "rank 1 sends 8193 bytes in one message");
    assert_refused_frame(NOTE, 12, 70, "rank 1 sends 12 bytes in one message");
}

static void a_rank_that_leaves_is_missed_at_once(void **state) {
    (void)state;
    int port = next_port++;
    rank r = start_rank(0, 2, port, 20, say_hello);
    close(come_as_rank_1(port, HELLO));
    assert_ends(&r, 75, "rank 1 is gone");
}

static void a_failure_is_heard(void **state) {
    (void)state;
    int port = next_port++;
    const ql_note note = {.rank = 1, .status = QL_DISK, .text = "no space there"};
    rank r = start_rank(0, 2, port, 20, say_hello);
    int one = come_as_rank_1(port, HELLO);
    send_frame(one, NOTE, &note, sizeof note, 100);
    leave(one);
    assert_ends(&r, ql_status_exit_code(QL_DISK), "rank 1: no space there");
}

/* After its deadline rank 0 tells rank 1, which answers for whom it waits itself. */
static void the_one_who_is_missed_answers(void **state) {
    (void)state;
    int port = next_port++;
    ql_note note = {.rank = 1, .status = QL_INTERRUPTED, .missing = 4, .text = "rank 2 has been missing"}, heard;
    char skipped[8 + 5 + 8];
    rank r = start_rank(0, 2, port, 0.3, say_hello);
    int one = come_as_rank_1(port, HELLO);
    receive_bytes(one, skipped, sizeof skipped);
    receive_bytes(one, &heard, sizeof heard);
    assert_int_equal(heard.missing, 2);
    assert_non_null(strstr(heard.text, "rank 1 has been missing"));
    send_frame(one, NOTE, &note, sizeof note, 2000);
    leave(one);
    assert_ends(&r, 75, "rank 1: rank 2 has been missing");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranks_meet_and_talk),
        cmocka_unit_test(bytes_that_come_one_by_one),
        cmocka_unit_test(strangers_are_sent_away),
        cmocka_unit_test(half_a_hello_is_not_waited_for),
        cmocka_unit_test(a_port_in_use_is_said),
        cmocka_unit_test(nobody_listens),
        cmocka_unit_test(frames_that_do_not_fit_are_refused),
        cmocka_unit_test(a_rank_that_leaves_is_missed_at_once),
        cmocka_unit_test(a_failure_is_heard),
        cmocka_unit_test(the_one_who_is_missed_answers),
    };
    next_port = 20000 + (int)(getpid() % 30000);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
