"""The frames of cameras, from video files."""
