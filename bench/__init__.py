"""Measures, never decides: `python -m octavo.bench` times decoding, kernels and the engine beside real peers."""
