"""A small rendered world whose every label is known exactly."""
