"""The report: one page from stored results."""
