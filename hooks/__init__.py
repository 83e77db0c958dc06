"""What the template's hooks do, in plain Python: `main(answers)`. The files in template/hooks only call these."""
