"""The object stores of the loopback Hub, S3 and Google Cloud Storage: as much of them as reading
takes.
"""
