"""Context Forcing: a teacher that sees a long context, and students distilled from it."""
