"""HTTP requests with deadlines, retries and rate limits, which can be canceled.

Knows nothing of the Hub.
"""
