"""Datasets in object stores, S3 and Google Cloud Storage: addresses, listings, credentials and
ranges.
"""
