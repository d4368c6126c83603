"""The words that every folder uses: the exceptions, half-open byte ranges, integer arrays, checks
of arguments, values of one process,
versions of dependencies.

Imports nothing of ours.
"""
