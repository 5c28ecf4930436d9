"""From an image file to a prepared image: decoding, encodings, rigs, cache."""
