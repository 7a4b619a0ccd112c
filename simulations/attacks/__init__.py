"""Clients that lie while a class is forgotten: what they achieve with and without the defence."""
