"""The declarations of a LeRobotDataset as immutable values: where files are, features, info.json,
episodes, tables of texts, the order of rows.

Bytes or arrays in, values or DatasetFormatError out. Knows no file, no network, no parquet. Read in
this order: layout, features, info, episodes.
"""
