"""The low-dimensional values, texts and embedded images of rows, from data files."""
