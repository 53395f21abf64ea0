"""Analysis of a study's records: the front, its significance, selection, convergence.

May import `store` and `study_file`.
"""
