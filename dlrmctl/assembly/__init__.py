"""Settings -> the parts of a run: tables, model, optimizers and their state, schedule; compressed models too."""
