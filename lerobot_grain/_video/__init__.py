"""MP4 bytes to frames.

`mp4` says where each coded picture is, `row_frames` and `video_file` which of them belongs to which
row, `small_mp4` stitches GOPs of many files into one, `rgb` and `depth` decode it (`decoder` has
what both share), `images` decodes embedded images. To add a codec: `codecs`, and
docs/architecture/extending.md.
"""
