#include "formats/layout.h"
