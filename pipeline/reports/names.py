"""Files of a report."""

PAGE_FILE = "report.html"
JSON_FILE = "report.json"
