"""Upkeep of studies that are not being searched: files of no use removed, studies deleted and renamed."""
