"""Recipes as data: read them with `importlib.resources.files("recipes")`."""
