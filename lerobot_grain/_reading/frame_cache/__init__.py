"""Decoded frames on disk, kept from one epoch and one run to the next. Knows neither rows nor
GOPs: a frame is named by camera, episode and its number there.
"""
