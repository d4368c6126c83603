"""Streams of whole episodes, or of chunks of them."""
