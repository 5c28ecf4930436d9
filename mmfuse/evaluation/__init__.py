"""Scores, how sure they are, and what corruptions cost."""
