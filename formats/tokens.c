#include "formats/tokens.h"
