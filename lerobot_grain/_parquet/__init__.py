"""Parquet bytes to NumPy columns: the only importer of pyarrow besides `_datasets/feed/remote`.

Gets ranges of bytes from a reader that it is given, and never opens anything. Files may be
malicious: what they can cost is bounded before it is spent.
"""
