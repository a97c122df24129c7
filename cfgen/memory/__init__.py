"""What a generator keeps of earlier chunks: policies, page pools and the seam between them."""
