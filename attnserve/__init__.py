"""Serve transformers with expressive, elliptical or dot-product attention, and show what every head looked at."""

__version__ = "0.1.0"
