"""Which network the layers of a file form."""
