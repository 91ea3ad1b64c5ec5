"""Shared by the reports of data and of runs: charts, style and rendering of a page."""

PAGE_FILE = "report.html"
JSON_FILE = "report.json"
