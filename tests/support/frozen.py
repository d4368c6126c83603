"""Imported last by the server of `forked`: what is there by now is left alone by the garbage
collectors of the processes that are forked from it.

A full collection looks at every object, half a million of the large libraries, and so copies the
memory that a forked process shares with its server: 0.3 s of a core for each process.
"""

import gc

gc.freeze()
