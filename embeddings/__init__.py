"""How ids become rows of tables, how rows combine, and where tables live."""
