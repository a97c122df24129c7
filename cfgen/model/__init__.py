"""The networks: generator, video autoencoder, text encoder."""
