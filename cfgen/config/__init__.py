"""What may be set, where values come from, and how they become one checked object."""
