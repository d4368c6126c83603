"""Rows of an epoch by weights, by which of them are valid, or by a stride."""
