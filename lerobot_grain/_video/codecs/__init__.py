"""The codecs that are read: what a decoder has to be told of a track, and what a coded picture says of itself."""
