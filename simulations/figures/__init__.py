"""Scripts that make tables and pictures. Each says with ``--help`` what it makes, and resumes where it was."""
