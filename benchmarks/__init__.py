"""Ratios of time, measured side by side in one process; never a timed test."""
