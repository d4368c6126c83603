"""Imported last by the server of `forked`: the garbage collectors of the processes that are forked
from it leave alone what is there by now.

A full collection looks at every object of the large libraries, and so copies the memory that a
forked process shares with its server.
"""

import gc

gc.freeze()
