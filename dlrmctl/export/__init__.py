"""`dlrmctl export`: a trained model as one file that plain torch serves."""
