"""The machine that a process shares with others."""
