"""Console output: messages, tables, progress bars, pictures and number formatting."""
