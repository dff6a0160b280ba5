"""Recipe → trained student."""
