"""Speed, measured side by side: each script runs its rivals in one go and prints the ratios."""
