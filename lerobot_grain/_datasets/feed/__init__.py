"""The ways of examples on from the stream: worker processes, and devices."""
