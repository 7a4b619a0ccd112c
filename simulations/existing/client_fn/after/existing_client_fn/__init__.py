"""existing_client_fn: A Flower / PyTorch app."""
