"""The page of `lerobot-grain show`: HTML that needs nothing but itself."""
