"""Preference pairs: read from files, held out, made into tokens."""
