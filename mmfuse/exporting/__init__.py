"""Detectors as files that other programs run: what lies in them, how they are written, compared and read again."""
