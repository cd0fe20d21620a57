#include "calib/recipe.h"
