"""Mixtures: many datasets in one stream, with weights, read by one reader."""
