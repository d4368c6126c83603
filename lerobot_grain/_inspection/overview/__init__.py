"""Looks at a dataset as a newcomer does: what it is, what its examples are, what a step costs."""
