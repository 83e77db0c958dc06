"""Everything that looks at a host: facts, the choice of a torch build, findings, and the files a project needs.

Copied whole into every project and run there by whatever `python3` the host has: standard library only, Python 3.8.
"""
