"""Reads examples ahead of the consumer, in order, within one memory budget.

One thread plans, pools execute. `rows` and `frames` do not know each other; `read_ahead` runs both.
"""
