"""Checks of evaluation_report, one SQL or Python file per check."""
