"""Lines, tables, bars, pictures and texts of numbers, by which everything is shown; each subject says what is."""
