"""The report as one HTML file: its records, its figures and charts, and the page they are drawn on."""
