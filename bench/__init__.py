"""Measurements: codec steps beside the published implementations, latency end to end, the engine.

python -m bench --help
"""
