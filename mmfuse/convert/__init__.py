"""Datasets, archives and effdet's checkpoints: in and out."""
