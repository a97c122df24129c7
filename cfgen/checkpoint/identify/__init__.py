"""What a file is known as."""
