"""Metrics of tasks over event sequences."""
