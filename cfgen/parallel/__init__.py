"""One film on several GPUs: each process has some tokens, and the pages of some heads."""
