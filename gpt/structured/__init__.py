"""Constrained output: what a request may say, and which ids may come next."""
