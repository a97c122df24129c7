"""A configuration becomes objects, and what can be done with them."""
