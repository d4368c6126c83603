"""Addresses, links, listings and caches of the Hugging Face Hub."""
