"""Run hooks/post_gen_project.py of the repository with the answers."""

import sys

# In the place of the temporary directory this file runs from, so that nothing lying there is imported.
sys.path[0] = {{"%r" | format(repository_root)}}

import json

from hooks import post_gen_project

post_gen_project.main(json.loads({{"%r" | format(cookiecutter | jsonify)}}))
