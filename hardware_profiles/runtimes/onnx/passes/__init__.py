"""Edits of an exported graph, each of one kind of decision: integer grids, 16-bit casts, recurrent matrices, products of integers."""
