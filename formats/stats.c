#include "formats/stats.h"
