"""Common parts of the reports: charts, style and rendering of a page."""

PAGE_FILE = "report.html"
JSON_FILE = "report.json"
