"""Parts of `compare_checkouts.py`: random cases, the worker of one checkout, and differences."""
