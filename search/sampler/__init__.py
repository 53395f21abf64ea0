"""Which policy comes next. May import `spaces` and `studies`; the factory alone knows the prepared study."""
