"""The machines of a search: Ray, and the timer a target needs, here or on a node.

Imports nothing else of `search`.
"""
