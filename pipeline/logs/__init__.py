"""Reading raw logs: formats, repair of CSV, typed columns, row counts."""
