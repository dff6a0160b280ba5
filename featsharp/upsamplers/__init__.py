"""One file an upsampler: a coarse map and the image it came from → a finer map."""
