"""`dlrmctl compress-embeddings`: smaller tables after training, to a method, a ratio or a budget of NE."""
