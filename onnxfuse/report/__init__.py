"""Reports: results as people and programs read them. Knows records only."""
