"""Measures of what was said about events that are known."""
