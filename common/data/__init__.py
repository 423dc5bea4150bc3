"""Corpora, windows and batches: NumPy in, NumPy out, so that both wings get the same batches in the same order."""
