"""The Grain datasets.

A dataset is a value, its iterator carries time. Iterators do no I/O until `next`; a state is
compared before anything changes.
"""
