"""Sorting of a log on disk into shards of whole sessions."""
