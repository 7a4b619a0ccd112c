"""existing_pytorch: A Flower / PyTorch app."""
