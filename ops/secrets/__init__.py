"""Passwords and certificates: files in ``secrets/<ENV>/``."""
