"""Checks of evaluation_report: a SQL or Python file each."""
