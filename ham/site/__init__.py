"""Static pages that show the records in a browser: scripts/report.py writes them to results/site."""
