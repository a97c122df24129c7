"""What can be said of a finished film without a model: drift, motion, seams, cuts, likeness."""
