"""The end of a search: the front's points scored on the test split by its workers, and timed again on the quiet machine."""
