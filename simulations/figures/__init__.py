"""Scripts that make tables and pictures. ``--help`` says what each makes; all resume where they were."""
