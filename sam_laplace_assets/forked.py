"""Imported last by the process that steps are forked from, and by nothing else.

What is in memory by then stays there: without this, the garbage collection of every step walks through all of it, and
so copies it.
"""

import gc

gc.freeze()
