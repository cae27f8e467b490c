"""Figures from stored files alone."""
