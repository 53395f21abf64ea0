"""A trial as a folder that needs no slimfront: exported, opened, verified.

May import `analysis` and `studies.wording`.
"""
