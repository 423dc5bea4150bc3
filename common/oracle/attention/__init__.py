"""Attention variants, one file each, chosen by name."""
