"""Closed forms: FLOPs and bytes of a model from its config alone."""
