#include "formats/checkpoint.h"
