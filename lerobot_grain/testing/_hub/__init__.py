"""The loopback Hub: `loopback` is what tests hold, `server` and what it imports run in a process of
their own.
"""
