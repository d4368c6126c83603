"""Fuzzing of everything that reads bytes of a dataset: the invariant is "a value, or
`DatasetFormatError`". See README.md.
"""
