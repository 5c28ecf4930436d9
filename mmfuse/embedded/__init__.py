"""The rendered set that comes along: a street, what stands on it, and its sensors."""
