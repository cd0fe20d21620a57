/* Counter-based random numbers: value i of a stream depends on (seed, i) alone, so any thread, rank or GPU can make any part.
 * The mix is the finalizer of SplitMix64 (Steele, Lea, Flood 2014). */
#ifndef HOST_RNG_H
#define HOST_RNG_H

#include "host/num.h"

QL_BOTH uint64_t ql_random(uint64_t seed, uint64_t i) {
    uint64_t x = seed * 0xd1342543de82ef95ull + (i + 1) * 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* Uniform in [0, 1). */
QL_BOTH double ql_random_uniform(uint64_t seed, uint64_t i) { return (double)(ql_random(seed, i) >> 11) * 0x1p-53; }

/* Standard normal (Box-Muller). */
QL_BOTH double ql_random_normal(uint64_t seed, uint64_t i) {
    double u = 1.0 - ql_random_uniform(seed, 2 * i), v = ql_random_uniform(seed, 2 * i + 1);
    return sqrt(-2.0 * log(u)) * cos(6.283185307179586 * v);
}

#endif
