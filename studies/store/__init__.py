"""The database: every study, trial, measurement and front, by value. May import `study_file`."""
