"""What was fetched, kept on disk: video and rows in pieces."""
