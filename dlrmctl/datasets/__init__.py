"""Data sets as commands meet them: opened by settings, prepared, generated, shown."""
