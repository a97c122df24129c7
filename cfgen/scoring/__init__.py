"""`cfgen score`: films and runs are read, their figures taken, and what was found written down."""
