"""Time to unlearn against the number of affected models, over random graphs; see ``__main__``."""
