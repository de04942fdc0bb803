"""Commands on data sets: opening, preparing, generating and showing them."""
