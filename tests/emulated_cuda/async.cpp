/* What goes on behind the program's back: copies in groups, and barriers that count arrivals and bytes.
 *
 * Nothing moves before some thread waits for it.  That is later than on any machine, so a wait that is missing, or that waits for
 * the wrong phase, shows. */
#include "tests/emulated_cuda/cuda_runtime.h"

#include <deque>
#include <vector>

/* ---- copies in groups -------------------------------------------------------------------------------------------------- */

struct copy {
    void *to;
    const void *from;
    int bytes; /* and zeros up to 16 */
};
/* Of every thread that copies: the last group is still open. */
static std::deque<std::vector<copy>> copies[EMULATED_THREADS];

void emulated_copy(void *to, const void *from, int bytes) {
    if ((uintptr_t)to % 16 || (bytes && (uintptr_t)from % 16)) emulated_stop("a copy that is not aligned to 16 bytes");
    if (bytes < 0 || bytes > 16) emulated_stop("a copy of more than 16 bytes");
    memset(to, EMULATED_POISON, 16);
    if (copies[threadIdx.x].empty()) copies[threadIdx.x].emplace_back();
    copies[threadIdx.x].back().push_back({to, from, bytes});
}

void emulated_commit_copies() {
    if (copies[threadIdx.x].empty()) copies[threadIdx.x].emplace_back();
    copies[threadIdx.x].emplace_back();
}

void emulated_wait_copies(int open) {
    auto &mine = copies[threadIdx.x];
    for (; mine.size() > (size_t)open + 1; mine.pop_front())
        for (const copy &c : mine.front()) {
            memset(c.to, 0, 16);
            if (c.bytes) memcpy(c.to, c.from, (size_t)c.bytes);
        }
}

void emulated_end_thread() {
    for (auto &group : copies[threadIdx.x])
        if (!group.empty()) emulated_stop("returns with copies under way");
    copies[threadIdx.x].clear();
    emulated_end_products();
}

/* ---- barriers that count bytes -------------------------------------------------------------------------------------------- */

struct barrier_state { /* in the 8 bytes of the barrier */
    uint64_t phase : 1, arrivals : 12, missing : 12, made : 12;
    int64_t bytes : 27;
};
static_assert(sizeof(barrier_state) == sizeof(uint64_t), "a barrier has 8 bytes");
enum { BARRIER_MADE = 0x5a5 }; /* neither poison nor zeros */

struct later_work {
    uint64_t *barrier;
    unsigned bytes;
    std::function<void()> work;
};
static std::vector<later_work> later;

static barrier_state *state_of(uint64_t *barrier) {
    auto *state = (barrier_state *)barrier;
    if ((uintptr_t)barrier % 8 || state->made != BARRIER_MADE) emulated_stop("a barrier that was never made");
    return state;
}

static void end_phase_if_over(barrier_state *state) {
    if (state->missing || state->bytes) return;
    state->phase ^= 1;
    state->missing = state->arrivals;
    emulated_progress();
}

void emulated_barrier_init(uint64_t *barrier, unsigned arrivals) {
    auto *state = (barrier_state *)barrier;
    if ((uintptr_t)barrier % 8) emulated_stop("a barrier that is not aligned to 8 bytes");
    memset(state, 0, sizeof *state);
    state->arrivals = state->missing = arrivals & 0xfff;
    state->made = BARRIER_MADE;
}

void emulated_barrier_arrive(uint64_t *barrier, unsigned expected_bytes) {
    barrier_state *state = state_of(barrier);
    if (state->missing == 0) emulated_stop("more arrivals than a barrier has");
    state->bytes += expected_bytes;
    state->missing--;
    end_phase_if_over(state);
}

void emulated_later(uint64_t *barrier, unsigned bytes, std::function<void()> work) {
    state_of(barrier);
    later.push_back({barrier, bytes, std::move(work)});
}

void emulated_barrier_wait(uint64_t *barrier, unsigned parity) {
    for (;;) {
        barrier_state *state = state_of(barrier);
        if (state->phase != parity) return;
        for (size_t i = 0; i < later.size();) {
            if (later[i].barrier != barrier) {
                i++;
                continue;
            }
            later[i].work();
            state->bytes -= later[i].bytes;
            later.erase(later.begin() + (long)i);
        }
        end_phase_if_over(state);
        if (state->phase != parity) return;
        emulated_yield();
    }
}

void emulated_end_block() {
    if (!later.empty()) emulated_stop("a block that ends with bulk copies under way");
}
