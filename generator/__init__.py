"""The package behind the template's hooks, its tests and its command line."""
