"""Fuzzing of everything that reads bytes of a data set: the invariant is "a value, or
`DatasetFormatError`". See README.md.
"""
