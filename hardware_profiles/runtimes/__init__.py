"""How a candidate becomes an artifact and how an artifact runs; a folder for each family of runtimes.

May import `cards`.
"""
