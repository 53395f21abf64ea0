"""Artifact stores: files by their content, in a folder or behind a URL. Knows no database."""
