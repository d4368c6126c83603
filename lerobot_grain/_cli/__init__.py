"""The command `lerobot-grain`: prints what `_inspection` returns."""
