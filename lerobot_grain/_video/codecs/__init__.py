"""The codecs that are read: their table, what a decoder has to be told of a track, and what a coded
picture says of itself.
"""
