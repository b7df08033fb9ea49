"""Parallel loops for scientific Python with a compiled core."""

__version__ = "0.1.0"
