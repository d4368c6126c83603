"""The output of commands: text, tables and files. No command stands here."""
