"""What the reports of a run and of data have in common: the look of a page, and its charts."""
