"""Layers in which an encoding acts."""
