"""The study file: what is searched, where, for what, within which budget. May import `spaces`."""
