"""Models → scores → Δm% report."""
