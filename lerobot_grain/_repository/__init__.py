"""Opens one revision of a dataset: reads `meta/` once (v3 and v2), and becomes a value.

Also which episodes and features a stream is made of.
"""
