"""Floor 0: what every room needs: errors, interrupts, validation, measurements, text.

Imports nothing of slimfront.
"""
