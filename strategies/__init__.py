"""Complete ways to forget, one file each, for comparison; not part of the installed library."""
