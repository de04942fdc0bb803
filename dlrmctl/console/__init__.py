"""How things are shown: lines, tables, bars, pictures, texts of numbers. What is shown lies with its subject."""
