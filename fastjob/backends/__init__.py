"""Backends: where the tasks of a call run."""
