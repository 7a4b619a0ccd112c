"""Every strategy on the same federation: what it forgot, what it kept, what it cost, beside retraining."""
