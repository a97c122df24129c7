"""LoRAs: read, understood, applied."""
