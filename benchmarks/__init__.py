"""Benchmarks of fastjob beside its peers, against physical limits, and by counts.

Run ``python -m benchmarks versus``, ``limits`` or ``counts`` from the root of a
checkout; ``benchmarks/README.md`` describes what each one measures and how.
"""
