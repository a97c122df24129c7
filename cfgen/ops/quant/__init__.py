"""Numbers stored in fewer bits."""
