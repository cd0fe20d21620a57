/* spoil_h5 FILE DATASET SECRET TRICK: plays a trick of tests/h5_tricks.c on an HDF5 file, for end-to-end tests; without a trick, the
 * names of all. */
#include <stdio.h>
#include <string.h>

#include "tests/h5_tricks.h"

int main(int argc, char **argv) {
    for (const h5_trick *trick = h5_tricks; trick->name; trick++) {
        if (argc < 5) printf("%s\n", trick->name);
        else if (strcmp(argv[4], trick->name) == 0) {
            if (h5_trick_play(trick, argv[1], argv[2], argv[3]) == QL_OK) return 0;
            fprintf(stderr, "spoil_h5: %s\n", ql_last_error());
            return 1;
        }
    }
    return argc < 5 ? 0 : 64;
}
