"""Inspection of a workload on a target before a search. May import `study_file`."""
