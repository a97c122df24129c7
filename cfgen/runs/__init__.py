"""What survives of a render on disk."""
