/* That the thread sanitizer sees races of OpenMP threads, and no race where OpenMP's barriers keep them apart.
 * planted_race: correct.  planted_race race: the threads write one variable. */
#include <stdio.h>

int main(int argc, char **argv) {
    enum { SIZE = 300 };
    (void)argv;
    int squares[SIZE], sum = 0, last = 0;
#pragma omp parallel for schedule(static) num_threads(3)
    for (int i = 0; i < SIZE; i++) {
        squares[i] = i * i % 7;
        if (argc > 1) last = i;
    }
#pragma omp parallel for schedule(dynamic) num_threads(3) reduction(+ : sum)
    for (int i = 0; i < SIZE; i++) sum += squares[SIZE - 1 - i]; /* another thread's, written before the barrier */
    printf("sum %d, last %d\n", sum, last);
    return 0;
}
