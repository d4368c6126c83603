"""What a LeRobotDataset declares, as immutable values: features, info.json, the episode table, tables of texts, the order of rows.

Bytes or arrays in, values or DatasetFormatError out. Knows no file, no network, no parquet. Read in this order: features, info, episodes.
"""
