"""What a search could do to a workload on a target, before any search. May import `study_file`."""
