"""Records as tables, figures and notes for people, and as JSON. May import all of `studies`."""
