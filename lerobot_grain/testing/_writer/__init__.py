"""Writes datasets with barcodes in their frames, as lerobot's tools lay them out."""
