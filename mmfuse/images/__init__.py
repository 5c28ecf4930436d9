"""From image files, or what came from them, to what a detector is shown: decoding, encodings, rigs, letterbox."""
