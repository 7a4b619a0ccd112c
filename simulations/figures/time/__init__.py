"""Time against every strategy: what each takes to make all affected models of a graph forget."""
