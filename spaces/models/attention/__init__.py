"""The heads of attention, however it is spelt, found by what influences what. May import the modules next to it that import nothing here."""
