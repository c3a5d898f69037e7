"""What a run did and measured, as JSON, Markdown, a page for the browser and a table for the terminal."""

from tfopt.report.environment import describe_environment
from tfopt.report.report import Report, StageEntry
from tfopt.report.terminal import print_summary

__all__ = ["Report", "StageEntry", "describe_environment", "print_summary"]
