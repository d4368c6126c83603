"""What commands write: text, tables and files. No command stands here."""
