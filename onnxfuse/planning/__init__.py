"""The plan: the cheapest equal expression of every linear region, chosen on integers alone."""
