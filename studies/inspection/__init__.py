"""Inspection of a workload on a target before a search, and the checks that a search begins with. May import `study_file`."""
