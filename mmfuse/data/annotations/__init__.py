"""Cards, and the readers and writers of annotations."""
