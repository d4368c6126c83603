"""Which row comes at a position, and which frames its example needs: pure functions of integers.

The only randomness of the package is here. People hold checkpoints of this order: read
docs/architecture/order.md before you change a line.
"""
