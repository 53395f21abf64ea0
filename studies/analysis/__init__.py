"""What a study's records say: the front, its significance, selection, convergence.

May import `store` and `study_file`.
"""
