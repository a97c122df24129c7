"""What `cfgen inspect` tells."""
