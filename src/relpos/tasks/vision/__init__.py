"""Whole pictures to what they show: small sets on a CPU, and ImageNet for those who have it."""
