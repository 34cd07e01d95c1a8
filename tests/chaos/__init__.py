"""Chaos: a seeded storm of kills, stops and changes against a real pool under load. `python -m tests.chaos --help`."""
