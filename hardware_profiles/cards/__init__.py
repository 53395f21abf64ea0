"""Target cards: the YAML files that come with slimfront, and what a card holds. May import names of runtimes."""
