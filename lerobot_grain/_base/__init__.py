"""The words that every folder uses: the exceptions, half-open byte ranges, values of one process, versions of dependencies.

Imports nothing of ours.
"""
