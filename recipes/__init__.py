"""Recipes: one script and one config each. Empty but for what has to be said before a script imports its libraries."""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at import of kernels that nobody asked for
