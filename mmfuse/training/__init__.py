"""The loop, the optimizer, losses of single sensors, starts, processes."""
