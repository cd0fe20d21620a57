#include "calib/journal.h"
