"""Which rows a stream has, and how often each of them comes."""
