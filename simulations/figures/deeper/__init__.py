"""What models still know of a class they were made to forget, beside models retrained without it."""
