"""Keeps on disk what was fetched: video and rows, in pieces."""
