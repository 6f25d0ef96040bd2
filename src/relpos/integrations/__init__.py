"""relpos inside other people's models."""
