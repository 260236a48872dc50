"""The report of a training run: one HTML file that opens offline."""

from gymrl.rl.report.page import write_report

__all__ = ["write_report"]
