"""Byte ranges of a pinned dataset: from a directory, the Hub, or an object store.

A storage is a value that pickles; what belongs to a process is made when it first reads. Knows of
the format only which folders there are. To add a storage: `base`, then `directory` as an example,
then a line in `opening`.
"""
