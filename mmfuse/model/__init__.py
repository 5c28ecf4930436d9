"""The detector: backbones, pyramids as data, weighted fusion, heads, loss, detection."""
