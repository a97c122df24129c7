"""What people bring to a training: prompts from a file, films from a folder."""
