"""Which policy comes next, from plain values, without Optuna. May import `spaces` and `studies`; `study_terms` alone knows the prepared study."""
