"""Tests of `lerobot_grain.testing`."""
